"""The driver's side of ranks: how they meet, and one answer for a call to all of them.

Owns the wait, which no rank that hangs or dies can make endless. Who the ranks are and what they compute is the
caller's business; what they send to each other is `rlhf.runtime.distributed`.
"""

import queue
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rlhf.runtime.workers import WorkerDiedError, WorkerTimeoutError
from rollout.calls import PendingCall, WorkerHandle

_SECONDS_FOR_THE_CAUSE = 5.0
"""When a rank dies, the others may complain before Ray knows."""
_LONGEST_WAIT = 1e9
"""Seconds; neither a queue nor Ray takes infinity."""


class AnswerOfAll:
    """The answer of the first of several calls, once all are done.

    Args:
        names: Of the workers, for errors.
        method: What they were called for, for errors.
        answers: Theirs.
    """

    def __init__(self, names: Sequence[str], method: str, answers: Sequence[PendingCall]) -> None:
        self._names, self._method, self._answers = names, method, answers

    def result(self, timeout_seconds: float) -> Any:
        """Waits for all; the first that fails ends the wait, because the others may wait for it.

        Raises:
            WorkerDiedError: a worker has died.
            WorkerTimeoutError: some have not answered; the message names them.
            Exception: what a worker raised first.
        """
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index, answer in enumerate(self._answers):
            answer.when_done(partial(done.put, index))
        timeout_seconds = min(timeout_seconds, _LONGEST_WAIT)
        waiting = set(range(len(self._answers)))
        failure: Exception | None = None
        deadline = time.monotonic() + timeout_seconds
        while waiting:
            try:
                index = done.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            waiting.remove(index)
            try:
                self._answers[index].result(timeout_seconds)
            except WorkerDiedError:
                raise
            except Exception as error:  # noqa: BLE001 - raised below, unless the death of a rank explains it
                if failure is None:
                    failure, deadline = error, min(deadline, time.monotonic() + _SECONDS_FOR_THE_CAUSE)
        if failure is not None:
            raise failure
        if waiting:
            late = ", ".join(self._names[index] for index in sorted(waiting))
            raise WorkerTimeoutError(f"actor {late} did not finish {self._method} within {timeout_seconds:g} seconds")
        return self._answers[0].result(timeout_seconds)

    def when_done(self, notify: Callable[[], None]) -> None:
        """Calls `notify` when the first worker has answered."""
        self._answers[0].when_done(notify)


def meet(workers: Sequence[WorkerHandle], *, timeout_seconds: float) -> None:
    """Brings ranks together at the first one's meeting point.

    Raises:
        WorkerError: they did not find each other in time.
        Exception: what joining raised in one of them.
    """
    address = workers[0].call("open_meeting_point", timeout_seconds).result(timeout_seconds)
    joining = [worker.call("join", address, timeout_seconds) for worker in workers]
    AnswerOfAll([worker.name for worker in workers], "join", joining).result(timeout_seconds)
