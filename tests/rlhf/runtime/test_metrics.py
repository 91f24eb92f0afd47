import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.health.monitor import HealthMonitor
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.health.training import NON_FINITE_METRIC
from rlhf.runtime.metrics import FAILURES_SUMMARY, MetricLogger, open_metric_logger, to_floats
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.guard import GuardedSink
from rlhf.runtime.sinks.jsonl import JsonlSink
from rlhf.runtime.sinks.sink import TrackingError
from rlhf.runtime.sinks.weights_and_biases import WandbSink, resolve_wandb_mode

CONFIG = {"run_dir": "x", "seed": 3, "optimizer": {"learning_rate": 1e-5}}
SECRET = "f00dfeed" * 5


class RecordingSink:
    def __init__(self) -> None:
        self.steps: list[tuple[int, dict[str, float]]] = []
        self.samples: list[tuple[int, list[Mapping[str, object]]]] = []
        self.alerts: list[Alert] = []
        self.closed: list[tuple[dict[str, object], bool]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.steps.append((step, dict(metrics)))

    def log_samples(self, step: int, rows: Sequence[Mapping[str, object]]) -> None:
        self.samples.append((step, list(rows)))

    def log_alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        self.closed.append((dict(summary), failed))


def test_tensors_and_numbers_reach_every_sink_as_floats() -> None:
    sinks = [RecordingSink(), RecordingSink()]
    weight = torch.tensor([2.5], requires_grad=True)
    MetricLogger(sinks).log(4, {"objective/kl": weight * 2, "sync/version": 7, "sync/bytes": torch.tensor(2**24 + 1)})
    for sink in sinks:
        assert sink.steps == [(4, {"objective/kl": 5.0, "sync/version": 7.0, "sync/bytes": 16777217.0})]
        assert all(type(value) is float for value in sink.steps[0][1].values())


def test_all_tensors_of_a_step_take_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    transferred: list[torch.Size] = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: transferred.append(self.shape) or self)
    assert to_floats({"a": torch.tensor(1.0), "b": 2, "c": torch.tensor([3])}) == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert transferred == [torch.Size([2])]


def test_an_undocumented_key_is_an_error_and_nothing_is_logged() -> None:
    sink = RecordingSink()
    with pytest.raises(ValueError, match=r"undocumented metric 'loss/polcy' .*'loss/policy'"):
        MetricLogger([sink]).log(1, {"loss/value": 1.0, "loss/polcy": 2.0})
    assert sink.steps == []


def test_a_tensor_that_is_not_one_number_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"metric 'objective/kl' has shape \(2,\)"):
        MetricLogger([]).log(1, {"objective/kl": torch.zeros(2)})


def test_sinks_are_closed_once_and_told_of_a_failure() -> None:
    sink = RecordingSink()
    with pytest.raises(KeyError), MetricLogger([sink]):
        raise KeyError
    assert sink.closed == [({}, True)]
    sink = RecordingSink()
    with MetricLogger([sink]) as logger:
        logger.close({"kl": 1.0})
    assert sink.closed == [({"kl": 1.0}, False)]


def test_what_the_health_rules_find_reaches_every_sink_and_the_summary() -> None:
    sinks = [RecordingSink(), RecordingSink()]
    logger = MetricLogger(sinks, health=HealthMonitor([NON_FINITE_METRIC]))
    logger.log(1, {"objective/kl": 0.5})
    logger.log(2, {"objective/kl": torch.tensor(math.nan)})
    logger.close({"kl": 1.0})
    for sink in sinks:
        assert [(alert.step, alert.rule, alert.finding) for alert in sink.alerts] == [
            (2, "non_finite_metric", "objective/kl is NaN")
        ]
        ((summary, _),) = sink.closed
        health: Any = summary["health"]
        assert (summary["kl"], health["verdict"], len(health["alerts"])) == (1.0, "error", 1)


class BrokenSink(RecordingSink):
    """Refuses the steps and summaries that its script names."""

    def __init__(self, *bad_steps: int, closes: bool = True) -> None:
        super().__init__()
        self.bad_steps, self.closes = bad_steps, closes

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step in self.bad_steps:
            raise OSError(f"no route to host at step {step}\ntraceback of the client")
        super().log(step, metrics)

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        super().close(summary, failed=failed)
        if not self.closes:
            raise OSError("disk full")


def test_a_failing_tracker_is_told_once_counted_and_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    record, broken = RecordingSink(), BrokenSink(1, 3)
    logger = MetricLogger([record, GuardedSink("Tracker", broken)])
    for step in (1, 2, 3):
        logger.log(step, {"objective/kl": step / 2})
    assert [message for message in caplog.messages if "Tracker" in message] == [
        "Tracker failed (no route to host at step 1); the run goes on, metrics.jsonl has every number"
    ]
    assert [step for step, _ in record.steps] == [1, 2, 3]
    assert [step for step, _ in broken.steps] == [2]
    logger.close({"kl": 1.5})
    assert record.closed == [({"kl": 1.5, FAILURES_SUMMARY: {"Tracker": 2}}, False)]
    assert caplog.messages[-1] == "Tracker failed 2 times; metrics.jsonl of the run folder is complete"


def test_the_record_of_the_run_is_not_guarded() -> None:
    with pytest.raises(OSError, match="no route"):
        MetricLogger([BrokenSink(1)]).log(1, {"objective/kl": 0.5})


def test_every_sink_is_closed_in_order_though_the_first_cannot_be() -> None:
    order: list[str] = []

    class Ordered(BrokenSink):
        def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
            order.append("first" if not self.closes else "second")
            super().close(summary, failed=failed)

    with pytest.raises(OSError, match="disk full"):
        MetricLogger([Ordered(closes=False), Ordered()]).close({"kl": 1.0})
    assert order == ["first", "second"]


def test_a_run_that_ends_early_has_no_verdict() -> None:
    sink = RecordingSink()
    with pytest.raises(KeyError), MetricLogger([sink], health=HealthMonitor([NON_FINITE_METRIC])):
        raise KeyError
    assert sink.closed == [({}, True)]


def test_the_run_folder_receives_metrics_samples_and_summary(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        logger = open_metric_logger(folder, TrackingConfig(wandb="off"), CONFIG, stage="ppo", total_steps=2)
        logger.log(1, {"objective/kl": torch.tensor(0.5)})
        logger.log_samples(1, [{"prompt": "p", "response": "r"}])
        logger.close({"kl": 0.5})
    assert folder.read_metrics() == [{"step": 1, "objective/kl": 0.5}]
    assert folder.read_samples() == [{"step": 1, "prompt": "p", "response": "r"}]
    assert folder.read_summary() == {"kl": 0.5}
    assert not (tmp_path / "wandb").exists()


def test_a_failed_run_leaves_no_summary(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder, pytest.raises(KeyError), MetricLogger([JsonlSink(folder)]):
        raise KeyError
    assert not folder.summary_path.exists()


@pytest.mark.parametrize(
    ("choice", "environment", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "off"),
        ("online", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("off", {"WANDB_API_KEY": "k"}, "off"),
    ],
)
def test_the_mode_follows_the_config_then_the_environment(choice, environment, mode) -> None:
    assert resolve_wandb_mode(choice, environment) == mode


def test_an_impossible_mode_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"tracking\.wandb: online needs WANDB_API_KEY .*tracking\.wandb=offline"):
        resolve_wandb_mode("online", {})
    with pytest.raises(ValueError, match="WANDB_MODE: 'sideways' is none of online"):
        resolve_wandb_mode("auto", {"WANDB_MODE": "sideways"})


def records_of(run_folder: RunFolder) -> list[dict]:
    """The records of the newest W&B run of a folder; waits for the last ones, which follow shortly after the close."""
    newest = max((run_folder.path / "wandb").glob("offline-run-*"))
    options = ["--json", "--follow", "--idle-timeout", "30s"]
    command = [sys.executable, "-m", "wandb", "leet", "inspect", *options, str(newest)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    records = [json.loads(line) for line in output.splitlines()]
    assert records[-1]["type"] == "exit"
    return records


def wandb_variables() -> dict[str, str]:
    """Those of this process, less the address that W&B publishes for its own child processes."""
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB") and name != "WANDB_SERVICE"}


def items(records: list[dict], kind: str) -> list[dict]:
    return [record[kind] for record in records if record["type"] == kind]


def test_an_offline_wandb_run_holds_config_metrics_and_samples_and_is_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    tracking = TrackingConfig(project="tests", name="first", tags=("tiny",))
    environment = wandb_variables()
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        logger = open_metric_logger(folder, tracking, CONFIG, stage="ppo", total_steps=2)
        for step in (1, 2):
            logger.log(step, {"objective/kl": torch.tensor(step / 2), "policy/clipfrac": float("nan")})
            logger.log_samples(step, [{"prompt": "once", "response": f"<b>{step}", "score": step / 4}])
        logger.log_alert(NON_FINITE_METRIC.alert(2, "policy/clipfrac is NaN"))
        logger.close({"ppo": {"kl": 1.0}})
    assert wandb_variables() == environment

    records = records_of(folder)
    (run,) = items(records, "run")
    update = run["config"]["update"]
    assert (update["seed"], update["optimizer"]) == (3, {"learning_rate": 1e-5})
    assert update["environment"]["versions"]["torch"].startswith("2.")
    assert (run["project"], run["display_name"], run["tags"]) == ("tests", "first", ["ppo", "tiny"])
    rows = [entry["item"] for entry in items(records, "history")]
    assert [(row["progress/step"], row["objective/kl"]) for row in rows if "objective/kl" in row] == [
        (1, 0.5),
        (2, 1.0),
    ]
    assert any(entry.get("step_metric") == "progress/step" for entry in items(records, "metric"))
    tables = [row for row in rows if "samples.path" in row]
    assert [table["samples._type"] for table in tables] == ["incremental-table-file"] * 2
    (files,) = (folder.path / "wandb").glob("offline-run-*/files")
    parts = [json.loads((files / table["samples.path"]).read_text()) for table in tables]
    assert [part["columns"] for part in parts] == [["step", "prompt", "response", "score"]] * 2
    assert [part["data"] for part in parts] == [[[1, "once", "<b>1", 0.25]], [[2, "once", "<b>2", 0.5]]]
    (alert,) = items(records, "alert")
    assert (alert["title"], alert["level"]) == ("non_finite_metric", "ERROR")
    assert alert["text"].startswith("Step 2: policy/clipfrac is NaN.\n\n")
    assert run["run_id"] == folder.wandb_run_id_path.read_text().strip()

    with RunFolder.resume(folder.path, CONFIG) as resumed:
        WandbSink(resumed, tracking, CONFIG, "ppo", "offline").close({}, failed=True)
    # Folder names carry whole seconds only; a part started within the same second gets a suffix that sorts after it.
    parts = sorted((folder.path / "wandb").glob("offline-run-*"))
    assert len(parts) == 2
    assert all(part.name.split("-")[3] == run["run_id"] for part in parts)

    assert capfd.readouterr().err == ""
    written = [path for path in folder.path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_wandb_out_of_reach_is_an_error_when_online_is_wanted_and_offline_when_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A key of the wrong length is refused without a network.
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    with RunFolder.create(tmp_path, CONFIG) as folder:
        with pytest.raises(TrackingError, match=r"W&B: .*; check WANDB_API_KEY .*tracking\.wandb=offline"):
            open_metric_logger(folder, TrackingConfig(wandb="online"), CONFIG, stage="ppo", total_steps=1)
        with caplog.at_level(logging.WARNING):
            logger = open_metric_logger(folder, TrackingConfig(wandb="auto"), CONFIG, stage="ppo", total_steps=1)
        logger.log(1, {"objective/kl": 0.5})
        logger.close({})
    assert "tracked offline" in caplog.text
    assert any(entry["item"].get("objective/kl") == 0.5 for entry in items(records_of(folder), "history"))


def test_sample_fields_may_not_change_midway(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, CONFIG) as folder:
        sink = WandbSink(folder, TrackingConfig(), CONFIG, "ppo", "offline")
        sink.log_samples(1, [])
        with pytest.raises(
            ValueError, match=r"sample fields are \['response'\], the table has \['prompt', 'response'\]"
        ):
            sink.log_samples(1, [{"prompt": "p", "response": "r"}, {"response": "r"}])
        sink.close({}, failed=False)
