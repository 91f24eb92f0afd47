"""A run's numbers as files of its run folder: the record that every other sink is a copy of."""

from collections.abc import Mapping

from rlhf.runtime.health.rule import Alert
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.sink import Rows


class JsonlSink:
    """metrics.jsonl, samples.jsonl, alerts.jsonl and summary.json of the run folder."""

    def __init__(self, run_folder: RunFolder) -> None:
        self._run_folder = run_folder

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends the step's line."""
        self._run_folder.append_metrics(step, metrics)

    def log_samples(self, step: int, rows: Rows) -> None:
        """Appends one line a sample."""
        self._run_folder.append_samples(step, rows)

    def log_alert(self, alert: Alert) -> None:
        """Appends the alert's line."""
        self._run_folder.append_alert(alert.as_row())

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Writes summary.json; a failed or interrupted run gets none, so its presence means the end was reached."""
        if summary and not failed:
            self._run_folder.write_summary(summary)
