"""Rollout over several workers as if it were one: shared work, verified weights, and workers that may die.

Owns what the workers are asked, what is required of their answers, and how a new worker becomes equal to the others.
The waiting is `supervisor`'s, the bookkeeping of jobs `job_queue`'s; where workers live, nobody here knows.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from rollout.calls import WorkerHandle, WorkerLostError
from rollout.job_queue import Chunk, JobQueue
from rollout.responses import NonFiniteLogitsError
from rollout.supervisor import Call, Post, Program, Supervisor
from rollout.types import Completion, PerToken, Prompt, RolloutBatch, TokenIds
from rollout.weight_broadcast import WeightBroadcast
from rollout.weight_feed import Bucket, WeightSource
from rollout.weight_sync import StaleWeightsError, WeightSyncError, require_ack, require_canary, told_by

_Flight = deque[tuple[Chunk, Call]]


@dataclass(frozen=True, slots=True)
class Canary:
    """Sequences that learner and samplers must score alike.

    Attributes:
        prompts: Prompt ids.
        responses: Response ids.
        expected: The learner's log-probabilities of the responses, nats.
        tolerance: Largest allowed difference, nats.
    """

    prompts: Sequence[TokenIds]
    responses: Sequence[TokenIds]
    expected: Sequence[PerToken]
    tolerance: float


class RolloutPool:
    """Rollout workers that hold the same policy. One thread at a time may use it.

    Args:
        workers: At least one.
        timeout_seconds: Longest time that a worker may work on one call before it is taken for hung.
        start_timeout_seconds: The same for the start of a new worker; None means `timeout_seconds`.
        responses_per_call: Most responses of one call; None cuts a rollout into one call a worker.
        calls_in_flight: Calls that a worker has been given and not answered, at most.
        max_worker_restarts: Losses of one worker, without a finished call between them, that are made good.
    """

    def __init__(
        self,
        workers: Sequence[WorkerHandle],
        *,
        timeout_seconds: float,
        start_timeout_seconds: float | None = None,
        responses_per_call: int | None = None,
        calls_in_flight: int = 1,
        max_worker_restarts: int = 0,
    ) -> None:
        if not workers:
            raise ValueError("workers is empty; a rollout needs at least one worker: raise placement.rollout.workers")
        self._workers = len(workers)
        self._start_timeout_seconds = start_timeout_seconds or timeout_seconds
        self._responses_per_call = responses_per_call
        self._calls_in_flight = calls_in_flight
        self._supervisor = Supervisor(
            workers, timeout_seconds=timeout_seconds, max_restarts=max_worker_restarts, revive=self._revive
        )
        self._version: int | None = None
        self._source: WeightSource | None = None
        self._canary: Canary | None = None
        self._retries = 0

    @property
    def version(self) -> int | None:
        """Number of the policy that was last given to the workers; None before the first."""
        return self._version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, policy_version: int
    ) -> RolloutBatch:
        """Completions of all jobs in their order, the same for any number of workers and however many are lost.

        A worker takes the next chunk when it has room, so a slow one holds nobody up. What cannot be generated is
        missing in the batch and stands in its `failures`.

        Args:
            prompts: (B,) prompts, repeated for each response (`rollout.generation.repeat_prompts`).
            response_indices: (B,) index of each response among those of its prompt.
            seed: Seed of the run.
            step: Rollout phase.
            policy_version: What every worker must sample from.

        Raises:
            WeightSyncError: if a worker has another version, or does not decode with its weights.
            WorkerLostError: if a worker dies or hangs, where none is replaced.
            RolloutWorkerError: if a worker was lost too often.
            NoCompletionsError: if nothing at all can be generated.
        """
        jobs = JobQueue(prompts, calls=self._calls(len(prompts)))

        def start(post: Post, chunk: Chunk) -> Call:
            part = prompts[chunk.jobs], response_indices[chunk.jobs]
            return post.call("generate", *part, seed=seed, step=step, expected_version=policy_version)

        def work(post: Post) -> Program:
            flight: _Flight = deque()
            try:
                while not jobs.is_done:
                    while len(flight) < self._calls_in_flight and (chunk := jobs.take()) is not None:
                        flight.append((chunk, start(post, chunk)))
                    if flight:
                        yield flight[0][1]
                        _take_answer(post, jobs, flight, policy_version)
                    else:
                        yield None
            except WorkerLostError as loss:
                _return(jobs, flight, loss)
                raise

        self._supervisor.run(work)
        self._retries += jobs.retries
        return jobs.batch()

    def update_weights(self, source: WeightSource, broadcast: WeightBroadcast | None = None) -> int:
        """Brings every worker to the source's version, and checks that each holds it; returns the bytes sent to each.

        Args:
            source: Where workers get the weights, one by one.
            broadcast: Another way to the same weights, for all at once. Where it breaks, because a worker is lost, the
                source serves everybody.

        Raises:
            WeightSyncError: if a worker received or holds something else; the message names it and says by how much.
            WorkerLostError, RolloutWorkerError: as `generate`.
        """
        self._source, self._canary = source, None
        size_bytes = broadcast.send(self._supervisor, source.version) if broadcast is not None else None
        if size_bytes is None:
            size_bytes = self._send_one_by_one(source)
        self._version = source.version
        return size_bytes

    def _send_one_by_one(self, source: WeightSource) -> int:
        size_bytes = 0
        for bucket in source.buckets():
            self._supervisor.run(lambda post, bucket=bucket: _load(post, bucket))
            size_bytes += bucket.header.size_bytes
        return size_bytes

    def adopt_version(self, version: int) -> None:
        """Tells every worker that the learner has written this version into the memory they share with it."""

        def adopt(post: Post) -> Program:
            call = post.call("adopt_version", version)
            yield call
            call.answer()

        self._supervisor.run(adopt)
        self._version = version

    def verify_canary(self, canary: Canary) -> float:
        """Largest difference in nats between the learner's and any worker's log-probabilities of the canary.

        A worker that is replaced from now on must pass it, too, until the next update.

        Raises:
            CanaryMismatchError: if a worker differs by more than the tolerance; the error names it.
            WorkerLostError, RolloutWorkerError: as `generate`.
        """
        differences: dict[str, float] = {}
        self._supervisor.run(lambda post: _compare(post, canary, differences))
        self._canary = canary
        return max(differences.values())

    def drain_metrics(self) -> dict[str, float]:
        """What went wrong and was made good since the last call."""
        metrics = {"rollout/restarts": float(self._supervisor.restarts), "rollout/retries": float(self._retries)}
        self._supervisor.restarts = self._retries = 0
        return metrics

    def stop(self) -> None:
        """Ends what another thread waits for here, and everything after; the workers are left alone."""
        self._supervisor.stop()

    def _calls(self, jobs: int) -> int:
        return max(self._workers, ceil(jobs / (self._responses_per_call or max(1, jobs))))

    def _revive(self, post: Post) -> Program:
        """A new worker with the present weights, proved as the others' were."""
        started = post.restart(self._start_timeout_seconds)
        yield started
        started.answer()
        for bucket in self._source.buckets() if self._source is not None else ():
            yield from _load(post, bucket)
        if self._canary is not None:
            yield from _compare(post, self._canary, {})


def _take_answer(post: Post, jobs: JobQueue, flight: _Flight, policy_version: int) -> None:
    """What came of a worker's oldest chunk: completions, or an error that its prompts are blamed for."""
    chunk, call = flight[0]
    try:
        completions = _answer(post, call)
        _require_version(post, completions, policy_version)
    except (WorkerLostError, WeightSyncError, NonFiniteLogitsError):
        raise
    except (ValueError, RuntimeError) as error:
        jobs.fail(chunk, error)
    else:
        jobs.finish(chunk, completions)
        post.prove()
    flight.popleft()


def _return(jobs: JobQueue, flight: _Flight, loss: WorkerLostError) -> None:
    """The worker was busy with the oldest chunk; the others it never saw."""
    (chunk, _), *unseen = flight
    for innocent, _ in reversed(unseen):
        jobs.give_back(innocent)
    jobs.lose(chunk, loss)


def _load(post: Post, bucket: Bucket) -> Program:
    call = post.call("apply_update", bucket.update)
    yield call
    require_ack(post.title, _answer(post, call), bucket.header)


def _compare(post: Post, canary: Canary, differences: dict[str, float]) -> Program:
    call = post.call("canary", canary.prompts, canary.responses)
    yield call
    differences[post.name] = require_canary(post.title, canary.expected, call.answer(), tolerance=canary.tolerance)


def _answer(post: Post, call: Call) -> Any:
    with told_by(post.title):
        return call.answer()


def _require_version(post: Post, completions: Sequence[Completion], policy_version: int) -> None:
    for completion in completions:
        if completion.policy_version != policy_version:
            raise StaleWeightsError(
                f"{post.title} sampled prompt {completion.prompt_id!r} with policy version "
                f"{completion.policy_version}, asked was {policy_version}"
            )
