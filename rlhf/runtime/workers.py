"""How the driver talks to a role, wherever it lives; this file has no Ray, `cluster.py` has.

Owns the handle of a role in this process, the errors of a wait, and the fan-out of lists over the workers of one role.
The contract of a handle is `rollout.calls.WorkerHandle`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.calls import PendingCall, WorkerHandle, WorkerLostError
from rollout.job_queue import shares


class WorkerError(RuntimeError):
    """An actor failed, or could not be placed; the message names it."""


class WorkerTimeoutError(WorkerError, TimeoutError):
    """An actor did not answer in time; the message names it."""


class WorkerDiedError(WorkerError, WorkerLostError):
    """An actor died; the message names it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    value: Any

    def result(self, timeout_seconds: float) -> Any:
        del timeout_seconds  # Nothing to wait for: the call has run.
        return self.value

    def when_done(self, notify: Callable[[], None]) -> None:
        notify()


class LocalWorker:
    """A role object in this process; calls run at once, and what they raise is raised by the call.

    Args:
        name: Name for errors.
        target: The object.
        build: Builds another one in its place; None where nothing may take its place.
    """

    def __init__(self, name: str, target: object, *, build: Callable[[], object] | None = None) -> None:
        self.name = name
        self._target, self._build = target, build

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        """Runs `method` now."""
        resolved = [argument.value if isinstance(argument, _Answer) else argument for argument in arguments]
        return _Answer(getattr(self._target, method)(*resolved, **keywords))

    def restart(self) -> PendingCall:
        """Builds a new object in the place of the present one."""
        if self._build is None:
            raise WorkerError(f"{self.name} lives in the driver's process and cannot be replaced")
        self._target = self._build()
        return _Answer(None)


def fan_out(workers: Sequence[WorkerHandle], method: str, *columns: Sequence[Any]) -> list[tuple[int, PendingCall]]:
    """Calls `method` on contiguous shares of the columns; returns (start, answer) of each share, in order.

    Args:
        workers: Those of one role; a worker whose share would be empty is not called.
        method: Takes one list a column.
        columns: Lists of equal length, cut at the same places.
    """
    parts = shares(len(columns[0]), len(workers))
    return [
        (part.start, worker.call(method, *(column[part] for column in columns)))
        for worker, part in zip(workers, parts, strict=False)
    ]
