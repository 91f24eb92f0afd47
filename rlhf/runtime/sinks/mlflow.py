"""A run's numbers in MLflow. The only file that imports mlflow."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.saved_config import leaves
from rlhf.runtime.sinks.sink import Rows, TrackingError

if TYPE_CHECKING:
    from mlflow.entities import Param

FOLDER = "mlruns"
_RUN_ID_FILE = "mlflow_run_id"
_MAX_PARAMETER_CHARACTERS = 6000
_PARAMETERS_A_CALL = 100
_METRICS_A_CALL = 1000
"""The last three are MLflow's own limits."""


class MlflowSink:
    """An MLflow run on the server of MLFLOW_TRACKING_URI, or in `<run_dir>/mlruns` where that is not set.

    A resumed run continues the MLflow run whose id lies in the run folder. Samples and alerts are files of the run.

    Args:
        run_folder: Holds the id, and the store where there is no server.
        tracking: Experiment (`project`), name and tags.
        resolved_config: Becomes the run's parameters, by dotted key.
        stage: A tag of the run.
    """

    def __init__(
        self, run_folder: RunFolder, tracking: TrackingConfig, resolved_config: Mapping[str, object], stage: str
    ) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415 - an extra, see tracking.mlflow
        from mlflow.exceptions import MlflowException  # noqa: PLC0415 - an extra, see tracking.mlflow
        from mlflow.tracking import MlflowClient  # noqa: PLC0415 - an extra, see tracking.mlflow

        self._metric = Metric
        self._run_folder = run_folder
        uri = os.environ.get("MLFLOW_TRACKING_URI") or (run_folder.path.resolve() / FOLDER).as_uri()
        settings = leaves(dict(resolved_config)).items()
        parameters = [Param(key, str(value)[:_MAX_PARAMETER_CHARACTERS]) for key, value in settings]
        try:
            with _file_store_allowed():
                self._client = MlflowClient(tracking_uri=uri)
                self._run_id = self._open_run(tracking, stage, parameters)
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise TrackingError(
                f"MLflow: {reason}; correct MLFLOW_TRACKING_URI, or set tracking.mlflow=false"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a point to each metric's curve."""
        now = int(time.time() * 1000)
        points = [self._metric(key, value, now, step) for key, value in metrics.items()]
        for start in range(0, len(points), _METRICS_A_CALL):
            self._client.log_batch(self._run_id, metrics=points[start : start + _METRICS_A_CALL])

    def log_samples(self, step: int, rows: Rows) -> None:  # noqa: ARG002 - every sink's signature
        """Replaces the run's copy of samples.jsonl, which only grows."""
        if rows:
            self._client.log_artifact(self._run_id, str(self._run_folder.samples_path))

    def log_alert(self, alert: Alert) -> None:
        """Replaces the run's copy of alerts.jsonl, and tags the run with the rule."""
        self._client.log_artifact(self._run_id, str(self._run_folder.alerts_path))
        self._client.set_tag(self._run_id, f"alert.{alert.rule}", f"step {alert.step}: {alert.finding}")

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Adds the summary and ends the run."""
        if summary:
            self._client.log_text(self._run_id, json.dumps(summary, default=str, indent=2), "summary.json")
        self._client.set_terminated(self._run_id, status="FAILED" if failed else "FINISHED")

    def _open_run(self, tracking: TrackingConfig, stage: str, parameters: "Sequence[Param]") -> str:
        saved = self._run_folder.path / _RUN_ID_FILE
        if saved.exists():
            run_id = saved.read_text(encoding="utf-8").strip()
            self._client.update_run(run_id, status="RUNNING")
            return run_id
        experiment = self._client.get_experiment_by_name(tracking.project)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(tracking.project)
        name = tracking.name or self._run_folder.path.resolve().name
        tags = {"stage": stage, **{f"tag.{tag}": "true" for tag in tracking.tags}}
        run_id = self._client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
        for start in range(0, len(parameters), _PARAMETERS_A_CALL):
            self._client.log_batch(run_id, params=parameters[start : start + _PARAMETERS_A_CALL])
        write_atomically(saved, f"{run_id}\n")
        return run_id


@contextmanager
def _file_store_allowed() -> Iterator[None]:
    """MLflow prefers a database, whose driver its small package lacks; a run's own folder needs none."""
    name = "MLFLOW_ALLOW_FILE_STORE"
    is_ours = name not in os.environ
    if is_ours:
        os.environ[name] = "true"
    try:
        yield
    finally:
        if is_ours:
            del os.environ[name]
