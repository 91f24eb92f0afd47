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
from rlhf.learner_group import LearnerRank, join_group
from rlhf.roles import RoleHost
from rlhf.runtime.config import InProcessPlacement, SplitPlacement
from rlhf.runtime.distributed import Ranks
from rlhf.runtime.placement import ALL_ROLES, RoleName, Seat, largest_node, seats_of
from rlhf.runtime.workers import LocalWorker, fan_out
from rollout.calls import WorkerHandle
from rollout.generation import repeat_prompts
from rollout.pool import Canary, RolloutPool
from rollout.responses import NonFiniteLogitsError
from rollout.types import PerToken, Prompt, RolloutBatch, TokenIds
from rollout.weight_broadcast import WeightBroadcast
from rollout.weight_feed import WeightFeed, WeightSource

CanarySequences = tuple[Sequence[TokenIds], Sequence[TokenIds]]
"""Prompt ids and response ids of the sequences that learner and samplers must score alike."""
CANARIES = 2
"""Sequences whose log-probs are compared after every sync."""
_MIB = 1024**2


@dataclass(frozen=True, slots=True)
class PublishedWeights:
    """The learner's weights under one version, on offer to the rollout workers.

    Attributes:
        version: Number of the policy.
        source: Where workers get them; None where they share the learner's memory and have them already.
        canary: What proves them; None proves nothing.
    """

    version: int
    source: WeightSource | None
    canary: Canary | None


@dataclass(frozen=True, slots=True)
class RoleGroups:
    """The workers of each role.

    `generate`, `load` and `sync` speak to the rollout workers, and belong to one thread at a time; everything else
    speaks to the others, and may run beside them.

    Attributes:
        rollout: Workers that generate.
        reward: Workers that score.
        reference: Workers that hold the reference.
        learner: The worker that trains, or the handle of several ranks.
        share_weights: Rollout samples from the learner's own tensors, so a sync moves none.
        timeout_seconds: Longest wait for one call to reward, reference or learner.
        canary_tolerance: Nats; a larger gap between sampler and learner means that they do not hold the same weights.
        bucket_bytes: Largest part in which weights travel.
        broadcast: Gives them to all rollout workers at once; None sends them through the object store.
        keeps_published: Published weights stay what they are when the learner moves on, at the price of a copy.
    """

    rollout: RolloutPool
    reward: Sequence[WorkerHandle]
    reference: Sequence[WorkerHandle]
    learner: WorkerHandle
    share_weights: bool
    timeout_seconds: float
    canary_tolerance: float
    bucket_bytes: int = 256 * _MIB
    broadcast: WeightBroadcast | None = None
    keeps_published: bool = False

    def generate(
        self, prompts: Sequence[Prompt], responses_per_prompt: int, *, seed: int, step: int, version: int
    ) -> RolloutBatch:
        """G responses to each prompt, in the order of the prompts, by weights of exactly `version`."""
        repeated, indices = repeat_prompts(prompts, responses_per_prompt)
        return self.rollout.generate(repeated, indices, seed=seed, step=step, policy_version=version)

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

    def sync(self, version: int, *, canaries: CanarySequences | None = None) -> dict[str, float]:
        """Gives every rollout worker the learner's weights under `version`, and proves it: `publish`, then `load`."""
        return self.load(self.publish(version, canaries=canaries))

    def publish(self, version: int, *, canaries: CanarySequences | None = None) -> PublishedWeights:
        """Puts the learner's present weights on offer as `version`.

        Args:
            version: Number of the policy that the learner holds.
            canaries: Prompt and response ids of the sequences that prove the weights; None proves nothing.

        Raises:
            NonFiniteLogitsError: the last update has ruined the policy.
        """
        canary = None if canaries is None else self._canary(canaries, version)
        if self.share_weights:
            return PublishedWeights(version, None, canary)
        source = WeightFeed(
            self.learner,
            version,
            bucket_bytes=self.bucket_bytes,
            timeout_seconds=self.timeout_seconds,
            is_snapshot=self.keeps_published,
        )
        return PublishedWeights(version, source, canary)

    def load(self, weights: PublishedWeights) -> dict[str, float]:
        """Brings every rollout worker to published weights and proves it; does nothing where they have them.

        Raises:
            WeightSyncError: a worker does not hold or run the learner's weights; the message says which and by how
                much.
        """
        if self.rollout.version == weights.version:
            return {}
        metrics = {"sync/version": float(weights.version), "sync/bytes": 0.0}
        if weights.source is None:
            self.rollout.adopt_version(weights.version)
        else:
            metrics["sync/bytes"] = float(self.rollout.update_weights(weights.source, self.broadcast))
        if weights.canary is not None:
            metrics["sync/canary_max_logprob_diff"] = self.rollout.verify_canary(weights.canary)
        return metrics

    def _canary(self, canaries: CanarySequences, version: int) -> Canary:
        prompts, responses = canaries
        expected = self.learn("logprobs", prompts, responses)
        if not all(np.isfinite(row).all() for row in expected):
            raise NonFiniteLogitsError(
                f"the policy's log-probabilities are not finite at version {version}; the last update has ruined its "
                "weights: start another run_dir with a lower optimizer.learning_rate"
            )
        return Canary(prompts, responses, expected, self.canary_tolerance)


def canaries_of(batch: RolloutBatch) -> CanarySequences:
    """The sequences of a rollout that prove the next sync."""
    prompts = [prompt.token_ids for prompt in batch.prompts[:CANARIES]]
    return prompts, [completion.token_ids for completion in batch.completions[:CANARIES]]


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
        node_resources,
        put_once,
        ray_cluster,
        ray_workers,
    )

    placement = config.placement
    with ray_cluster(placement.address) as offered:
        # An actor cannot be larger than a node.
        seats = seats_of(placement, largest_node(node_resources()))
        requests = [ActorRequest(name, seat.resources, *_object_for(config, seat)) for name, seat in seats.items()]
        with ray_workers(requests, offered, timeout_seconds=placement.timeout_seconds) as workers:
            by_role: dict[RoleName, Sequence[WorkerHandle]] = {
                role: [w for w, seat in zip(workers, seats.values(), strict=True) if role in seat.roles]
                for role in ALL_ROLES
            }
            if isinstance(placement, SplitPlacement) and placement.learner.workers > 1:
                by_role["learner"] = [join_group(by_role["learner"], placement, share=put_once)]
            yield _groups(config, by_role, timeout_seconds=placement.timeout_seconds)


def _object_for(config: PpoConfig, seat: Seat) -> tuple[Callable[..., object], dict[str, Any]]:
    """What an actor hosts, as the function that builds it and its keywords."""
    keywords: dict[str, Any] = {"config": config, "threads": max(1, int(seat.resources.cpus))}
    if seat.ranks is not None:
        return LearnerRank, {**keywords, "ranks": Ranks(*seat.ranks)}
    return RoleHost, {**keywords, "roles": seat.roles}


def _groups(
    config: PpoConfig, workers: Mapping[RoleName, Sequence[WorkerHandle]], *, timeout_seconds: float
) -> RoleGroups:
    rollout, is_split = config.rollout, isinstance(config.placement, SplitPlacement)
    (learner, *_), bucket_bytes = workers["learner"], rollout.sync_bucket_mib * _MIB
    broadcast = None
    if config.broadcasts_weights:
        # Shorter than the calls that wait for it, so that whoever is late is named by those that are not.
        patience = min(timeout_seconds, rollout.timeout_seconds) / 3
        broadcast = WeightBroadcast(learner, bucket_bytes=bucket_bytes, timeout_seconds=patience)
    pool = RolloutPool(
        workers["rollout"],
        timeout_seconds=min(timeout_seconds, rollout.timeout_seconds),
        start_timeout_seconds=timeout_seconds,
        responses_per_call=rollout.responses_per_call,
        calls_in_flight=rollout.calls_in_flight,
        # Elsewhere the learner lives in the same process, and its weights would be lost with it.
        max_worker_restarts=rollout.max_worker_restarts if is_split else 0,
    )
    return RoleGroups(
        rollout=pool,
        reward=workers["reward"],
        reference=workers["reference"],
        learner=learner,
        share_weights=not is_split,
        timeout_seconds=timeout_seconds,
        # Two kernels may sum in another order; another weight shows far above this.
        canary_tolerance=1e-3 if config.model.dtype == "float32" else 5e-2,
        bucket_bytes=bucket_bytes,
        broadcast=broadcast,
        keeps_published=rollout.max_policy_age > 0,
    )
