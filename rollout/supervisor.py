"""Workers that work at the same time, each through a program of calls; those that die or hang are replaced.

Owns the waiting: one thread, one queue of answers, a deadline for each worker. What the calls mean is the program's
business, and how a new worker becomes equal to the others that of `revive` (`rollout.pool` writes both).
"""

import logging
import math
import queue
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollout.calls import PendingCall, WorkerHandle, WorkerLostError

logger = logging.getLogger(__name__)


class RolloutTimeoutError(WorkerLostError):
    """A rollout worker did not answer in time."""


class RolloutWorkerError(RuntimeError):
    """A rollout worker was lost again and again; the message holds the last cause."""


class RolloutStoppedError(RuntimeError):
    """The wait for workers was ended from outside."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call that runs on a worker.

    Attributes:
        method: Its name, for errors.
        pending: Its answer.
        limit_seconds: Longest wait, from when it is the worker's oldest call.
    """

    method: str
    pending: PendingCall
    limit_seconds: float

    def answer(self) -> Any:
        """What the worker answered, once the call was waited for; raises what it raised."""
        return self.pending.result(0.0)


Program = Generator[Call | None, None, None]
"""What one worker has to do: it makes calls, and yields the one it waits for, or None as long as it finds none to make.

A lost worker raises WorkerLostError in it, where it waits or where it takes the answer.
"""


@dataclass(slots=True, eq=False)
class Post:
    """One worker's place, which outlives the worker.

    Attributes:
        worker: Who holds it.
        timeout_seconds: Limit of a call.
        losses: Workers lost here since `prove`.
        lives: Workers that have stood here before the present one.
    """

    worker: WorkerHandle
    timeout_seconds: float
    losses: int = 0
    lives: int = 0
    program: Program | None = None
    awaited: Call | None = None
    deadline: float = field(default=math.inf)

    @property
    def name(self) -> str:
        """The worker's name."""
        return self.worker.name

    @property
    def title(self) -> str:
        """The worker's name, with what it is, for messages."""
        return f"rollout worker {self.name}"

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Call:
        """Starts a call on the worker."""
        try:
            pending = self.worker.call(method, *arguments, **keywords)
        except (WorkerLostError, ValueError, RuntimeError) as error:
            # A worker in this process raises at once; elsewhere, the answer raises.
            pending = _Raised(error)
        return Call(method, pending, self.timeout_seconds)

    def restart(self, limit_seconds: float) -> Call:
        """Starts a new worker in the place of the present one."""
        return Call("start-up", self.worker.restart(), limit_seconds)

    def prove(self) -> None:
        """The worker did real work, so its next loss is not a repeated one."""
        self.losses = 0


class Supervisor:
    """Runs a program on every worker at once.

    Args:
        workers: At least one.
        timeout_seconds: Longest time that a worker may work on one call.
        max_restarts: Losses of one worker, without any work done between them, that are made good.
        revive: What brings a new worker up to date, before the interrupted program runs again from its beginning.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        *,
        timeout_seconds: float,
        max_restarts: int,
        revive: Callable[[Post], Program],
    ) -> None:
        self._posts = [Post(worker, timeout_seconds) for worker in workers]
        self._max_restarts = max_restarts
        self._revive = revive
        self._events: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._stopped = False
        self.restarts = 0

    @property
    def lives(self) -> tuple[int, ...]:
        """How often each worker has been replaced: as long as that stays the same, they are the same ones."""
        return tuple(post.lives for post in self._posts)

    def run(self, program: Callable[[Post], Program]) -> None:
        """Runs `program` on every worker, to the end of all.

        Raises:
            RolloutWorkerError: when a worker was lost more than `max_restarts` times in a row.
            WorkerLostError: at the first loss, where none is made good.
            RolloutStoppedError: after `stop`.
            Exception: what a program raises.
        """
        try:
            self._require_running()
            for post in self._posts:
                self._begin(post, program(post), program)
            while any(post.program is not None for post in self._posts):
                self._wait(program)
        finally:
            for post in self._posts:
                _end(post)

    def stop(self) -> None:
        """Ends the present wait and refuses every later one; may be called from another thread."""
        self._stopped = True
        self._events.put(None)

    def _require_running(self) -> None:
        if self._stopped:
            raise RolloutStoppedError("the rollout was stopped, because the run ends")

    def _begin(self, post: Post, program: Program, again: Callable[[Post], Program]) -> None:
        post.program = program
        self._resume(post, again)

    def _wait(self, program: Callable[[Post], Program]) -> None:
        """Waits for one answer, or for the first deadline, and lets the programs go on."""
        waiting = [post for post in self._posts if post.awaited is not None]
        assert waiting, "every program waits for a call of another one"
        first = min(waiting, key=lambda post: post.deadline)
        remaining = first.deadline - time.monotonic()
        try:
            answered = self._events.get(timeout=max(0.0, remaining) if math.isfinite(remaining) else None)
        except queue.Empty:
            self._resume(first, program, _timed_out(first))
        else:
            self._require_running()
            # What nobody waits for any more is the answer of a worker that was given up.
            for post in [post for post in waiting if post.awaited is answered]:
                self._resume(post, program)
        for post in self._posts:
            if post.program is not None and post.awaited is None:
                self._resume(post, program)

    def _resume(self, post: Post, again: Callable[[Post], Program], error: RolloutTimeoutError | None = None) -> None:
        """Lets a program go on to its next wait."""
        assert post.program is not None, "only a running program goes on"
        post.awaited = None
        try:
            awaited = next(post.program) if error is None else post.program.throw(error)
        except StopIteration:
            post.program = None
        except WorkerLostError as loss:
            self._replace(post, loss, again)
        else:
            self._await(post, awaited)

    def _await(self, post: Post, call: Call | None) -> None:
        post.awaited = call
        if call is not None:
            post.deadline = time.monotonic() + call.limit_seconds
            call.pending.when_done(lambda: self._events.put(call))

    def _replace(self, post: Post, loss: WorkerLostError, again: Callable[[Post], Program]) -> None:
        if not self._max_restarts:
            raise loss
        if post.losses == self._max_restarts:
            raise RolloutWorkerError(
                f"{post.title} was lost {post.losses + 1} times without finishing a call, "
                f"rollout.max_worker_restarts={self._max_restarts} are made good; the last time: {loss}"
            ) from loss
        post.losses += 1
        post.lives += 1
        self.restarts += 1
        logger.warning("%s; a new worker takes the place of %s", loss, post.title)
        self._begin(post, _one_after_the_other(self._revive(post), again(post)), again)


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception

    def result(self, timeout_seconds: float) -> Any:
        del timeout_seconds  # It has happened already.
        raise self.error

    def when_done(self, notify: Callable[[], None]) -> None:
        notify()


def _one_after_the_other(first: Program, second: Program) -> Program:
    yield from first
    yield from second


def _end(post: Post) -> None:
    if post.program is not None:
        post.program.close()
    post.program = post.awaited = None


def _timed_out(post: Post) -> RolloutTimeoutError:
    call = post.awaited
    assert call is not None, "only a call can be late"
    return RolloutTimeoutError(
        f"{post.title} did not finish {call.method!r} within {call.limit_seconds:g} s; it hangs or is "
        "overloaded: look at its log, or raise rollout.timeout_seconds"
    )
