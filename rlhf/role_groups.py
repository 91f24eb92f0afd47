"""The driver's view of the roles, and where a placement puts them.

`RoleGroups` fans work out over the workers of a role and gathers it in order, moves weights from learner to rollout
workers and proves that they arrived. `open_roles` starts the workers: Ray actors, or this process.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.interface import RewardFailure, RewardOutput, RewardRequest
from rlhf.config import PpoConfig
from rlhf.roles import RoleHost
from rlhf.runtime.config import InProcessPlacement, SplitPlacement
from rlhf.runtime.placement import ALL_ROLES, RoleName, Seat, seats_of
from rlhf.runtime.workers import LocalWorker, fan_out
from rollout.generation import repeat_prompts
from rollout.hf_engine import NonFiniteLogitsError
from rollout.pool import RolloutPool, WorkerHandle
from rollout.types import PerToken, Prompt, RolloutBatch, TokenIds

CANARIES = 2
"""Sequences whose log-probs are compared after every sync."""


@dataclass(frozen=True, slots=True)
class RoleGroups:
    """The workers of each role.

    Attributes:
        rollout: Workers that generate.
        reward: Workers that score.
        reference: Workers that hold the reference.
        learner: The worker that trains.
        share_weights: Rollout samples from the learner's own tensors, so a sync moves none.
        timeout_seconds: Longest wait for one call.
        rollout_timeout_seconds: The same, of a rollout worker.
        canary_tolerance: Nats; a larger gap between sampler and learner means that they do not hold the same weights.
    """

    rollout: Sequence[WorkerHandle]
    reward: Sequence[WorkerHandle]
    reference: Sequence[WorkerHandle]
    learner: WorkerHandle
    share_weights: bool
    timeout_seconds: float
    rollout_timeout_seconds: float
    canary_tolerance: float

    def generate(
        self, prompts: Sequence[Prompt], responses_per_prompt: int, *, seed: int, step: int, version: int
    ) -> RolloutBatch:
        """G responses to each prompt, in the order of the prompts, by weights of exactly `version`."""
        repeated, indices = repeat_prompts(prompts, responses_per_prompt)
        completions = self._pool.generate(repeated, indices, seed=seed, step=step, policy_version=version)
        return RolloutBatch(repeated, completions)

    def ask_scores(self, requests: Sequence[RewardRequest]) -> Callable[[], RewardOutput]:
        """Starts scoring; the returned function waits for the scores."""
        shares = fan_out(self.reward, "score", requests)
        return lambda: join_outputs([(start, future.result(self.timeout_seconds)) for start, future in shares])

    def ask_reference_logprobs(
        self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]
    ) -> Callable[[], list[PerToken]]:
        """Starts the reference; the returned function waits for its log-probs."""
        shares = fan_out(self.reference, "reference_logprobs", prompts, responses)
        return lambda: [row for _, future in shares for row in future.result(self.timeout_seconds)]

    def learn(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Calls the learner and waits."""
        return self.learner.call(method, *arguments, **keywords).result(self.timeout_seconds)

    def sync(self, version: int, *, canaries: RolloutBatch | None = None) -> dict[str, float]:
        """Gives every rollout worker the learner's weights under `version`, and proves it on canary sequences.

        Raises:
            ChecksumError: a worker loaded other weights than were sent.
            StaleWeightsError: a worker ends at another version.
            CanaryMismatchError: a worker's log-probs differ from the learner's; the message names it.
            NonFiniteLogitsError: the update has ruined the policy itself.
        """
        metrics = {"sync/version": float(version), "sync/bytes": 0.0}
        if self.share_weights:
            for worker in self.rollout:
                worker.call("adopt_version", version).result(self.rollout_timeout_seconds)
        else:
            update = self.learn("publish", version)
            self._pool.update_weights(update)
            metrics["sync/bytes"] = float(update.size_bytes)
        if canaries is not None:
            metrics["sync/canary_max_logprob_diff"] = self._compare(canaries, version)
        return metrics

    @property
    def _pool(self) -> RolloutPool:
        return RolloutPool(self.rollout, timeout_seconds=self.rollout_timeout_seconds)

    def _compare(self, batch: RolloutBatch, version: int) -> float:
        prompts = [prompt.token_ids for prompt in batch.prompts[:CANARIES]]
        responses = [completion.token_ids for completion in batch.completions[:CANARIES]]
        expected = self.learn("logprobs", prompts, responses)
        if not all(np.isfinite(row).all() for row in expected):
            raise NonFiniteLogitsError(
                f"the policy's log-probabilities are not finite at version {version}; the last update has ruined its "
                "weights: start another run_dir with a lower optimizer.learning_rate"
            )
        return self._pool.verify_canary(prompts, responses, expected, tolerance=self.canary_tolerance)


def join_outputs(shares: Sequence[tuple[int, RewardOutput]]) -> RewardOutput:
    """One output from those of contiguous shares, each with the index it starts at."""
    outputs = [output for _, output in shares]
    return RewardOutput(
        scores=np.concatenate([output.scores for output in outputs]),
        components={
            name: np.concatenate([output.components[name] for output in outputs]) for name in outputs[0].components
        },
        failures=[
            RewardFailure(start + failure.index, failure.reason)
            for start, output in shares
            for failure in output.failures
        ],
    )


@contextmanager
def open_roles(config: PpoConfig) -> Iterator[RoleGroups]:
    """Starts the workers that `placement` asks for and ends them with the context.

    Raises:
        ValueError: the placement can never fit, or a role refuses its configuration.
        WorkerError: a worker could not be started in time.
    """
    if isinstance(config.placement, InProcessPlacement):
        host = LocalWorker("driver", RoleHost(config, ALL_ROLES))
        yield _groups(config, {role: [host] for role in ALL_ROLES}, timeout_seconds=math.inf)
        return
    from rlhf.runtime.cluster import (  # noqa: PLC0415 - Ray need not be installed for roles in this process
        ActorRequest,
        ray_cluster,
        ray_workers,
    )

    placement = config.placement
    with ray_cluster(placement.address) as offered:
        seats = seats_of(placement, offered)
        requests = [
            ActorRequest(name, seat.resources, RoleHost, _host_arguments(config, seat)) for name, seat in seats.items()
        ]
        with ray_workers(requests, offered, timeout_seconds=placement.timeout_seconds) as workers:
            by_role: dict[RoleName, Sequence[WorkerHandle]] = {
                role: [w for w, seat in zip(workers, seats.values(), strict=True) if role in seat.roles]
                for role in ALL_ROLES
            }
            yield _groups(config, by_role, timeout_seconds=placement.timeout_seconds)


def _host_arguments(config: PpoConfig, seat: Seat) -> dict[str, Any]:
    return {"config": config, "roles": seat.roles, "threads": max(1, int(seat.resources.cpus))}


def _groups(
    config: PpoConfig, workers: Mapping[RoleName, Sequence[WorkerHandle]], *, timeout_seconds: float
) -> RoleGroups:
    return RoleGroups(
        rollout=workers["rollout"],
        reward=workers["reward"],
        reference=workers["reference"],
        learner=workers["learner"][0],
        share_weights=not isinstance(config.placement, SplitPlacement),
        timeout_seconds=timeout_seconds,
        rollout_timeout_seconds=min(timeout_seconds, config.rollout.timeout_seconds),
        # Two kernels may sum in another order; another weight shows far above this.
        canary_tolerance=1e-3 if config.model.dtype == "float32" else 5e-2,
    )
