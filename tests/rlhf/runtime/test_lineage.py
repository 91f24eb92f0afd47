import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.runtime.lineage import LineageItem, inputs_of, output_of
from rlhf.runtime.sinks.weights_and_biases import log_lineage


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Prompts, and a run that has left a reward model."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    model = tmp_path / "runs" / "reward" / "model"
    (model / "adapter").mkdir(parents=True)
    (model / "config.json").write_text("{}", encoding="utf-8")
    (model / "adapter" / "weights.bin").write_text("w", encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text("rows", encoding="utf-8")
    return tmp_path


CONFIG = {
    "model": {"path": "owner/base", "dtype": "float32"},
    "data": {"train": "prompts.jsonl[:90%]", "eval": "prompts.jsonl[90%:]", "pretrain": "owner/text:train", "cut": "x"},
    "reward": [{"kind": "model", "path": "runs/reward/model"}, {"kind": "length", "maximum_words": 2}],
    "critic": None,
}
REWARD_MODEL = {"adapter/weights.bin": sha256("w"), "config.json": sha256("{}")}


def test_inputs_are_data_base_and_reward_models_each_once_by_checksum(files: Path) -> None:
    items = inputs_of(CONFIG)
    assert items == [
        LineageItem("dataset", f"{files.name}-prompts.jsonl", {"prompts.jsonl": sha256("rows")}),
        LineageItem("dataset", "owner-text-train", {"owner/text:train": ""}),
        LineageItem("model", "owner-base", {"owner/base": ""}),
        LineageItem("model", "reward-model", REWARD_MODEL),
    ]


def test_what_one_run_makes_is_what_another_reads(files: Path) -> None:
    made = output_of(files / "runs" / "reward")
    assert made == inputs_of(CONFIG)[-1]
    # From wherever its path is written.
    assert inputs_of({"model": {"path": str(files / "runs" / "reward" / "model")}}) == [made]
    (files / "runs" / "reward" / "model" / "config.json").write_text("{ }", encoding="utf-8")
    assert output_of(files / "runs" / "reward") != made


def test_a_run_without_a_model_makes_none(tmp_path: Path) -> None:
    assert output_of(tmp_path) is None
    assert inputs_of({"run_dir": "x", "data": None, "model": {"path": None}}) == []


class ScriptedRun:
    """A W&B run that writes down what it is told, or refuses it."""

    def __init__(self, refusal: str = "") -> None:
        self.told: list[tuple[str, str, str]] = []
        self.content: dict[str, Any] = {}
        self._refusal = refusal

    def use_artifact(self, artifact: Any) -> None:
        self._take("uses", artifact)

    def log_artifact(self, artifact: Any) -> None:
        self._take("makes", artifact)

    def _take(self, verb: str, artifact: Any) -> None:
        if self._refusal:
            raise RuntimeError(self._refusal)
        self.told.append((verb, artifact.type, artifact.name))
        (entry,) = artifact.manifest.entries.values()
        self.content[artifact.name] = json.loads(Path(entry.local_path).read_text(encoding="utf-8"))


def test_wandb_is_told_of_checksums_and_sent_no_file(files: Path) -> None:
    run: Any = ScriptedRun()
    log_lineage(run, CONFIG, files / "runs" / "reward")
    assert run.told == [
        ("uses", "dataset", f"{files.name}-prompts.jsonl"),
        ("uses", "dataset", "owner-text-train"),
        ("uses", "model", "owner-base"),
        ("uses", "model", "reward-model"),
        ("makes", "model", "reward-model"),
    ]
    assert run.content["reward-model"] == REWARD_MODEL


def test_lineage_that_wandb_refuses_is_logged_and_ends_nothing(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    run: Any = ScriptedRun("quota exceeded\nmore")
    log_lineage(run, CONFIG, files)
    assert caplog.messages == ["W&B does not take the run's lineage (quota exceeded); it is left out"]
