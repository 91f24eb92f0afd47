"""TensorBoard and MLflow, read back with their own libraries; both are optional."""

import os
from pathlib import Path

import pytest

from rlhf.config_loading.loader import ConfigError, load_config
from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.health.training import NON_FINITE_METRIC
from rlhf.runtime.metrics import open_metric_logger
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.sink import TrackingError

CONFIG = {"run_dir": "x", "seed": 3, "optimizer": {"learning_rate": 1e-5}, "data": {"files": ["a", "b"]}}


def log_run(folder: RunFolder, tracking: TrackingConfig, *, first: int = 1) -> None:
    """Two steps, an answer that is hard to write down, an alert."""
    logger = open_metric_logger(folder, tracking, CONFIG, stage="ppo", total_steps=2)
    for step in (first, first + 1):
        logger.log(step, {"objective/kl": step / 4, "policy/clipfrac": float("nan")})
    logger.log_samples(first, [{"prompt": "a|b", "response": "<b>two\nlines", "score": 0.5}])
    logger.log_alert(NON_FINITE_METRIC.alert(first + 1, "policy/clipfrac is NaN"))
    logger.close({"kl": 0.5})


def test_tensorboard_holds_every_number_and_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    # Heavy, and only where it is installed.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    tracking = TrackingConfig(wandb="off", tensorboard=True)
    with RunFolder.create(tmp_path, CONFIG) as folder:
        log_run(folder, tracking)
    with RunFolder.resume(tmp_path, CONFIG) as folder:
        folder.truncate_after(1)
        log_run(folder, tracking, first=2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("objective/kl")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[-1] == "| a\\|b | &lt;b>two<br>lines | 0.5 |"
    assert "alerts/non_finite_metric/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
def test_mlflow_without_a_server_keeps_parameters_metrics_and_files_and_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    # Heavy, and only where it is installed.
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    tracking = TrackingConfig(wandb="off", mlflow=True, project="tests", tags=("tiny",))
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        log_run(folder, tracking)
    with RunFolder.resume(tmp_path / "run", CONFIG) as folder:
        log_run(folder, tracking, first=3)
    assert "MLFLOW_ALLOW_FILE_STORE" not in os.environ

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=(tmp_path / "run" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params["optimizer.learning_rate"] == "1e-05"
    assert run.data.params["data.files"] == "['a', 'b']"
    assert run.data.tags["stage"] == "ppo"
    assert run.data.tags["alert.non_finite_metric"].startswith("step ")
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "objective/kl")
    assert [(point.step, point.value) for point in history] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {
        "alerts.jsonl",
        "samples.jsonl",
        "summary.json",
    }


def test_an_mlflow_server_that_cannot_be_used_is_one_line_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "carrier-pigeon://loft")
    with (
        RunFolder.create(tmp_path, CONFIG) as folder,
        pytest.raises(TrackingError, match=r"^MLflow: [^\n]*; correct MLFLOW_TRACKING_URI[^\n]*tracking.mlflow=false$"),
    ):
        open_metric_logger(folder, TrackingConfig(wandb="off", mlflow=True), CONFIG, stage="ppo", total_steps=2)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_library_that_is_missing_is_one_line_before_anything_loads(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.runtime.config.find_spec", lambda _name: None)
    with pytest.raises(ConfigError) as error:
        load_config(TrackingConfig, None, [f"{name}=true"])
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{name}: received true; ")
    assert f"pip install 'rlhf[{name}]'" in line
    assert load_config(TrackingConfig, None, [f"{name}=false"]) == TrackingConfig()
