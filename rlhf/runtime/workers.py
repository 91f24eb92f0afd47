"""How the driver talks to a role, wherever it lives; this file has no Ray, `cluster.py` has.

Owns the handle's contract, the handle of a role in this process, and the fan-out of a list over several workers of one role.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class WorkerError(RuntimeError):
    """An actor died, hung or could not be placed; the message names it."""


class Future(Protocol):
    """The answer to a call, now or later."""

    def result(self, timeout_seconds: float) -> Any:
        """Waits for the answer, or raises what the call raised."""
        ...


class WorkerHandle(Protocol):
    """One worker, wherever it lives."""

    name: str

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Future:
        """Starts `method` on the worker."""
        ...


@dataclass(frozen=True, slots=True)
class _Done:
    value: Any

    def result(self, timeout_seconds: float) -> Any:
        del timeout_seconds  # the value is here
        return self.value


class LocalWorker:
    """A role object in this process; calls run at once."""

    def __init__(self, name: str, target: object) -> None:
        self.name = name
        self._target = target

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Future:
        """Runs `method` now."""
        return _Done(getattr(self._target, method)(*arguments, **keywords))


def fan_out(workers: Sequence[WorkerHandle], method: str, *columns: Sequence[Any]) -> list[tuple[int, Future]]:
    """Calls `method` on contiguous shares of the columns, as equal in count as can be; returns (start, future) of each share.

    Args:
        workers: Those of one role; a worker whose share is empty is not called.
        method: Takes one list a column.
        columns: Lists of equal length, cut at the same places.
    """
    count = len(columns[0])
    bounds = [count * i // len(workers) for i in range(len(workers) + 1)]
    return [
        (start, worker.call(method, *(list(column[start:stop]) for column in columns)))
        for worker, start, stop in zip(workers, bounds, bounds[1:], strict=False)
        if stop > start
    ]
