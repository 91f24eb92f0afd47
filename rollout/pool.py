"""Rollout over several workers as if it were one: fan-out, gathering in order, verified weight updates.

Owns how jobs are split and what is required of the answers. It does not know where workers live: a handle is anything
that starts a call and waits for it with a timeout.
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from rollout.types import Completion, PerToken, Prompt, TokenIds
from rollout.weight_sync import Ack, ChecksumError, StaleWeightsError, WeightUpdate, require_canary


class PendingCall(Protocol):
    """The answer to a call, now or later."""

    def result(self, timeout_seconds: float) -> Any:
        """Waits for the answer; raises what the call raised, or TimeoutError."""
        ...


class WorkerHandle(Protocol):
    """A `RolloutWorker`, wherever it lives."""

    @property
    def name(self) -> str:
        """Name for errors, unique in the pool."""
        ...

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        """Starts `method` on the worker."""
        ...


class RolloutTimeoutError(RuntimeError):
    """A rollout worker did not answer in time."""


class RolloutPool:
    """Rollout workers that hold the same policy.

    Args:
        workers: At least one.
        timeout_seconds: Longest wait for one call to all workers.
        publish: Applied once to an update before it goes to every worker, so that a transport can store it once;
            sends it as it is if left out.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        *,
        timeout_seconds: float,
        publish: Callable[[WeightUpdate], Any] | None = None,
    ) -> None:
        if not workers:
            raise ValueError("workers is empty; a rollout needs at least one worker: raise placement.rollout.workers")
        self._workers = list(workers)
        self._timeout_seconds = timeout_seconds
        self._publish = publish or (lambda update: update)

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, policy_version: int
    ) -> list[Completion]:
        """Completions of all jobs in their order, the same for any number of workers.

        Args:
            prompts: (B,) prompts, repeated for each response (`rollout.generation.repeat_prompts`).
            response_indices: (B,) index of each response among those of its prompt.
            seed: Seed of the run.
            step: Rollout phase.
            policy_version: What every worker must sample from.

        Raises:
            StaleWeightsError: if a worker has another version.
            RolloutTimeoutError: if a worker doesn't answer in time.
        """
        calls = [
            (
                worker,
                worker.call(
                    "generate",
                    prompts[part],
                    response_indices[part],
                    seed=seed,
                    step=step,
                    expected_version=policy_version,
                ),
            )
            for worker, part in zip(self._workers, shares(len(prompts), len(self._workers)), strict=False)
        ]
        return [completion for part in self._gather("generate", calls) for completion in part]

    def update_weights(self, update: WeightUpdate) -> None:
        """Brings every worker to the update's version, and checks that each says so.

        Raises:
            ChecksumError: if a worker loaded something else.
            StaleWeightsError: if a worker ends at another version.
            RolloutTimeoutError: if a worker doesn't answer in time.
        """
        published = self._publish(update)
        for worker, ack in zip(self._workers, self._call_all("apply_update", published), strict=True):
            _require_ack(worker.name, ack, update)

    def verify_canary(
        self,
        prompts: Sequence[TokenIds],
        responses: Sequence[TokenIds],
        expected: Sequence[PerToken],
        *,
        tolerance: float,
    ) -> float:
        """Largest difference in nats between the learner's and any worker's log-probabilities of the same responses.

        Args:
            prompts: Prompt ids of the canary sequences.
            responses: Their response ids.
            expected: The learner's log-probabilities of them.
            tolerance: Largest allowed difference, nats.

        Raises:
            CanaryMismatchError: if a worker differs by more; the error names it.
            RolloutTimeoutError: if a worker doesn't answer in time.
        """
        answers = self._call_all("canary", prompts, responses)
        return max(
            require_canary(worker.name, expected, actual, tolerance=tolerance)
            for worker, actual in zip(self._workers, answers, strict=True)
        )

    def _call_all(self, method: str, *arguments: Any) -> list[Any]:
        return self._gather(method, [(worker, worker.call(method, *arguments)) for worker in self._workers])

    def _gather(self, method: str, calls: Sequence[tuple[WorkerHandle, PendingCall]]) -> list[Any]:
        """Waits for all calls against one common deadline."""
        deadline = time.monotonic() + self._timeout_seconds
        answers: list[Any] = []
        for worker, call in calls:
            try:
                answers.append(call.result(max(0.0, deadline - time.monotonic())))
            except TimeoutError as error:
                raise RolloutTimeoutError(
                    f"rollout worker {worker.name} did not finish {method!r} within {self._timeout_seconds:g} s; it "
                    "hangs or is overloaded: look at its log, or raise rollout.timeout_seconds"
                ) from error
        return answers


def shares(count: int, workers: int) -> list[slice]:
    """Contiguous shares of `count` jobs that differ by at most one job, larger ones first; empty ones are left out.

    Example: 5 jobs for 3 workers give [0:2], [2:4], [4:5].
    """
    size, extra = divmod(count, workers)
    bounds = [index * size + min(index, extra) for index in range(workers + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds) if stop > start]


def _require_ack(worker: str, ack: Ack, update: WeightUpdate) -> None:
    if ack.checksum != update.checksum:
        raise ChecksumError(
            f"rollout worker {worker} loaded weights with checksum {ack.checksum}, sent was {update.checksum}"
        )
    if ack.version != update.version:
        raise StaleWeightsError(f"rollout worker {worker} is at version {ack.version} after update {update.version}")
