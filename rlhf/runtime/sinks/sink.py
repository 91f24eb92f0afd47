"""What a place that metrics go to must take. Owns no number and no place."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from rlhf.runtime.health.rule import Alert

Rows = Sequence[Mapping[str, object]]


class TrackingError(RuntimeError):
    """A tracker was asked for and cannot be reached."""


class MetricSink(Protocol):
    """One place that metrics go to."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes the numbers of one step."""
        ...

    def log_samples(self, step: int, rows: Rows) -> None:
        """Takes answers sampled at one step, with the same fields every time."""
        ...

    def log_alert(self, alert: Alert) -> None:
        """Takes what a health rule found."""
        ...

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Takes the final numbers, empty where a run ended early, and lets go of resources."""
        ...
