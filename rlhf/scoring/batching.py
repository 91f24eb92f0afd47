"""Calls that arrive together -> one pass of the reward function, and each gets its part of the scores.

Owns the queue: who waits, for how long, and who is turned away. While one pass runs, the next one fills by itself. It
knows no HTTP.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from reward.interface import RewardFailure, RewardFn, RewardOutput, RewardRequest

logger = logging.getLogger(__name__)


class BusyError(Exception):
    """So many responses wait that no more are taken; the call may be repeated."""


class PassFailedError(Exception):
    """The reward function raised; the reason is in the log."""


@dataclass(slots=True)
class Tally:
    """What was served so far.

    Attributes:
        calls: Calls that were answered with scores.
        passes: Runs of the reward function.
        responses: Responses in those calls.
        failures: Responses without a score among them.
    """

    calls: int = 0
    passes: int = 0
    responses: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    requests: Sequence[RewardRequest]
    answer: asyncio.Future[RewardOutput]


class Batcher:
    """Scores calls in passes; one pass at a time, in a thread of its own, so that new calls are taken meanwhile.

    Args:
        reward: What scores. Its scores must not depend on the batch (`reward.interface.RewardFn`).
        names: Names of its components, for the answer to a call without requests.
        responses_per_batch: Most responses of one pass, unless a single call has more.
        waiting_responses: Most responses that wait.
        gather_seconds: How long the first call of a pass waits for others.

    Attributes:
        tally: What was served so far.
    """

    def __init__(
        self,
        reward: RewardFn,
        *,
        names: Sequence[str],
        responses_per_batch: int,
        waiting_responses: int,
        gather_seconds: float,
    ) -> None:
        self._reward, self._names, self._gather_seconds = reward, names, gather_seconds
        self._most_in_pass, self._most_waiting = responses_per_batch, waiting_responses
        self._waiting: deque[_Call] = deque()
        self._arrived = asyncio.Event()
        self.tally = Tally()

    async def score(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        """The scores of one call, when its turn has come.

        Raises:
            BusyError: too many responses wait already.
            PassFailedError: the reward function failed.
        """
        if not requests:
            nothing = np.empty(0, dtype=np.float32)
            return RewardOutput(nothing, dict.fromkeys(self._names, nothing))
        if self._waiting and self._count_waiting() + len(requests) > self._most_waiting:
            raise BusyError
        call = _Call(requests, asyncio.get_running_loop().create_future())
        self._waiting.append(call)
        self._arrived.set()
        return await call.answer

    async def run(self) -> None:
        """Works through the queue until it is cancelled; calls that wait then are cancelled, too."""
        with ThreadPoolExecutor(1, thread_name_prefix="reward") as thread:
            try:
                while True:
                    await self._arrived.wait()
                    await asyncio.sleep(self._gather_seconds)
                    await self._run_pass(self._take(), thread)
            finally:
                for call in self._waiting:
                    call.answer.cancel()

    def _count_waiting(self) -> int:
        return sum(len(call.requests) for call in self._waiting)

    def _take(self) -> list[_Call]:
        """The calls of the next pass: from the oldest, as many as fit, at least one."""
        taken = [self._waiting.popleft()]
        room = self._most_in_pass - len(taken[0].requests)
        while self._waiting and len(self._waiting[0].requests) <= room:
            taken.append(self._waiting.popleft())
            room -= len(taken[-1].requests)
        if not self._waiting:
            self._arrived.clear()
        return taken

    async def _run_pass(self, calls: Sequence[_Call], thread: ThreadPoolExecutor) -> None:
        requests = [request for call in calls for request in call.requests]
        ends = np.cumsum([len(call.requests) for call in calls]).tolist()
        try:
            output = await asyncio.get_running_loop().run_in_executor(thread, self._reward, requests)
            parts = [part_of(output, end - len(call.requests), end) for call, end in zip(calls, ends, strict=True)]
        except Exception:
            # The boundary of the service: the callers are told, and the next pass may be better.
            logger.exception("the reward function failed on %d responses", len(requests))
            for call in calls:
                _settle(call, PassFailedError())
            return
        self.tally.passes += 1
        self.tally.calls += len(calls)
        self.tally.responses += len(requests)
        self.tally.failures += len(output.failures)
        for call, part in zip(calls, parts, strict=True):
            _settle(call, part)


def part_of(output: RewardOutput, start: int, stop: int) -> RewardOutput:
    """The output of the requests from `start` to before `stop`, as if they had been scored alone."""
    return RewardOutput(
        scores=output.scores[start:stop],
        components={name: scores[start:stop] for name, scores in output.components.items()},
        failures=[
            RewardFailure(failure.index - start, failure.reason)
            for failure in output.failures
            if start <= failure.index < stop
        ],
    )


def _settle(call: _Call, outcome: RewardOutput | PassFailedError) -> None:
    """Answers a call, unless whoever asked has gone."""
    if call.answer.cancelled():
        return
    if isinstance(outcome, PassFailedError):
        call.answer.set_exception(outcome)
    else:
        call.answer.set_result(outcome)
