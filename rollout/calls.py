"""How a caller reaches a worker, wherever it lives: its handle, the answer to come, and the loss of the worker.

Contracts only. Who implements them (Ray actors, objects of this process) belongs to the caller; who waits, and what
happens when a worker is lost, to `rollout.supervisor`.
"""

from collections.abc import Callable
from typing import Any, Protocol


class WorkerLostError(RuntimeError):
    """The process of a worker is gone, with everything it held; the message names it."""


class PendingCall(Protocol):
    """The answer to a call, now or later."""

    def result(self, timeout_seconds: float) -> Any:
        """Waits for the answer; raises what the call raised, WorkerLostError, or TimeoutError."""
        ...

    def when_done(self, notify: Callable[[], None]) -> None:
        """Calls `notify` once when `result` would not wait: at once if that is now, else maybe from another thread."""
        ...


class WorkerHandle(Protocol):
    """A role object, wherever it lives. It runs its calls one after the other, in the order they were made."""

    @property
    def name(self) -> str:
        """Name for errors, unique in its group."""
        ...

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        """Starts `method` on the worker.

        An argument may be the pending call of another worker of the same kind: its answer then goes from there to
        here, without a visit to the caller.
        """
        ...

    def restart(self) -> PendingCall:
        """Ends the worker, however it is, and starts a new one under the same name, without any state of the old one.

        The answer comes when the new one is ready; calls may be made before. Calls to the old one are lost.
        """
        ...
