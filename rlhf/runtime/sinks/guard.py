"""Keeps a sink that fails from stopping the run whose numbers it only copies.

metrics.jsonl is not guarded: a run that cannot write its own record must stop.
"""

import logging
from collections.abc import Callable, Mapping

from rlhf.runtime.health.rule import Alert
from rlhf.runtime.sinks.sink import MetricSink, Rows

logger = logging.getLogger(__name__)


class GuardedSink:
    """A sink whose failures are counted, and told once when they begin and once at the end.

    It is asked again at the next step, since networks come back; a call that failed is not repeated.

    Args:
        name: Of the sink, for the log and the summary.
        sink: What may fail.
    """

    def __init__(self, name: str, sink: MetricSink) -> None:
        self.name = name
        self.failures = 0
        """Calls that failed."""
        self._sink = sink

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands on the numbers of one step."""
        self._attempt(lambda: self._sink.log(step, metrics))

    def log_samples(self, step: int, rows: Rows) -> None:
        """Hands on sampled answers."""
        self._attempt(lambda: self._sink.log_samples(step, rows))

    def log_alert(self, alert: Alert) -> None:
        """Hands on what a health rule found."""
        self._attempt(lambda: self._sink.log_alert(alert))

    def close(self, summary: Mapping[str, object], *, failed: bool) -> None:
        """Closes the sink and says how much it has lost."""
        self._attempt(lambda: self._sink.close(summary, failed=failed))
        if self.failures > 1:
            logger.warning("%s failed %d times; metrics.jsonl of the run folder is complete", self.name, self.failures)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - the boundary to somebody else's service; logged and counted
            self.failures += 1
            if self.failures == 1:
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                logger.warning("%s failed (%s); the run goes on, metrics.jsonl has every number", self.name, reason)
