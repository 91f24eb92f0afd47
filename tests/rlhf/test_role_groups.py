"""The driver's view of the roles: fan-out in order, weights that are proved to arrive, waits that name who hangs."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reward.interface import RewardFailure, RewardOutput, RewardRequest
from rlhf.config import PpoConfig
from rlhf.learner_group import LearnerGroup
from rlhf.role_groups import RoleGroups, canaries_of, join_outputs, open_roles
from rlhf.runtime.cluster import RayWorker
from rlhf.runtime.workers import LocalWorker, WorkerDiedError, WorkerTimeoutError
from rollout.calls import PendingCall, WorkerHandle
from rollout.pool import RolloutPool
from rollout.responses import NonFiniteLogitsError
from rollout.types import Completion, PerToken, Prompt, RolloutBatch, TokenIds
from rollout.weight_sync import (
    Ack,
    CanaryMismatchError,
    ChecksumError,
    StaleWeightsError,
    UpdateHeader,
    WeightUpdate,
    pack,
    unpack,
)
from tests.tiny_ppo import ppo_config


class Sampler:
    """A rollout worker whose log-probs are its one weight; a script spoils what it is sent."""

    def __init__(self, spoil: Callable[[WeightUpdate], WeightUpdate] = lambda update: update) -> None:
        self.weight, self.version, self._spoil = 0.0, 0, spoil
        self.samples = 0

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, expected_version: int
    ) -> list[Completion]:
        del seed, step
        if expected_version != self.version:
            raise StaleWeightsError(f"worker holds {self.version}, asked was {expected_version}")
        self.samples += len(prompts)
        ids = np.array([4, 2], np.int32)
        return [
            Completion(prompt.id, index, ids, np.zeros(2, np.float32), "stop", self.version)
            for prompt, index in zip(prompts, response_indices, strict=True)
        ]

    def apply_update(self, update: WeightUpdate) -> Ack:
        update = self._spoil(update)
        self.weight = float(unpack(update)["w"])
        self.version = update.version
        return Ack(update.version, update.checksum)

    def adopt_version(self, version: int) -> None:
        self.version = version

    def canary(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        del prompts
        return [np.full(len(response), self.weight, np.float32) for response in responses]


class Trainer:
    """A learner whose log-probs are its one weight."""

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.asked: list[int] = []
        self._packed: WeightUpdate | None = None

    def pack_update(self, version: int, bucket: int, bucket_bytes: int) -> UpdateHeader:
        assert (bucket, bucket_bytes) == (0, 1000)
        self._packed = pack({"w": torch.tensor(self.weight)}, version)
        return self._packed.header

    def packed_update(self) -> WeightUpdate:
        assert self._packed is not None
        return self._packed

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        self.asked.append(len(prompts))
        return [np.full(len(response), self.weight, np.float32) for response in responses]


class Judge:
    """Scores a request by the number in its response, and fails on "bad"."""

    def __init__(self) -> None:
        self.calls = 0

    def score(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        self.calls += 1
        bad = [index for index, request in enumerate(requests) if request.response == "bad"]
        scores = np.array([np.nan if r.response == "bad" else float(r.response) for r in requests], np.float32)
        return RewardOutput(scores, {"judge": scores * 2}, [RewardFailure(index, "it is bad") for index in bad])


class Anchor:
    """A reference whose log-probs are the prompt's first id."""

    def reference_logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        return [np.full(len(r), p[0], np.float32) for p, r in zip(prompts, responses, strict=True)]


class Hanging:
    """A worker that never answers; it knows for how long the caller would have waited."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waits: list[float] = []

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        del method, arguments, keywords
        return self

    def result(self, timeout_seconds: float) -> Any:
        self.waits.append(timeout_seconds)
        raise WorkerTimeoutError(f"actor {self.name} did not finish within {timeout_seconds:g} seconds")

    def when_done(self, notify: Callable[[], None]) -> None:
        """Never."""

    def restart(self) -> PendingCall:
        return self


def groups(
    *,
    rollout: Sequence[Any] = (),
    reward: Sequence[Any] = (),
    learner: Any = None,
    share_weights: bool = False,
    keeps_published: bool = False,
) -> RoleGroups:
    def handles(role: str, objects: Sequence[Any]) -> list[WorkerHandle]:
        return [o if hasattr(o, "call") else LocalWorker(f"{role}-{i}", o) for i, o in enumerate(objects)]

    return RoleGroups(
        rollout=RolloutPool(handles("rollout", rollout or [Sampler()]), timeout_seconds=5.0),
        reward=handles("reward", reward or [Judge()]),
        reference=handles("reference", [Anchor(), Anchor()]),
        learner=handles("learner", [learner or Trainer(0.5)])[0],
        share_weights=share_weights,
        timeout_seconds=7.0,
        canary_tolerance=1e-3,
        bucket_bytes=1000,
        keeps_published=keeps_published,
    )


def prompts_of(count: int) -> list[Prompt]:
    return [Prompt(str(i), "p", np.array([10 + i], np.int32)) for i in range(count)]


def batch_of(count: int) -> RolloutBatch:
    prompts = prompts_of(count)
    return RolloutBatch(prompts, Sampler().generate(prompts, [0] * count, seed=0, step=0, expected_version=0))


# --- fan-out ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_completions_come_back_in_the_order_of_the_prompts(workers: int) -> None:
    batch = groups(rollout=[Sampler() for _ in range(workers)]).generate(prompts_of(2), 2, seed=1, step=4, version=0)
    assert [prompt.id for prompt in batch.prompts] == ["0", "0", "1", "1"]
    assert [(c.prompt_id, c.response_index) for c in batch.completions] == [("0", 0), ("0", 1), ("1", 0), ("1", 1)]


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_scores_components_and_failures_are_joined_in_order(workers: int) -> None:
    judges = [Judge() for _ in range(workers)]
    requests = [RewardRequest("p", text) for text in ("1", "2", "bad", "4")]
    output = groups(reward=judges).ask_scores(requests)()
    np.testing.assert_array_equal(output.scores, np.array([1, 2, np.nan, 4], np.float32))
    np.testing.assert_array_equal(output.components["judge"], np.array([2, 4, np.nan, 8], np.float32))
    assert [(failure.index, failure.reason) for failure in output.failures] == [(2, "it is bad")]
    assert sum(judge.calls for judge in judges) == min(workers, 4)


def test_a_failure_in_a_later_share_keeps_its_place() -> None:
    outputs = [Judge().score([RewardRequest("p", t) for t in texts]) for texts in (("1", "bad"), ("3",), ("bad", "5"))]
    joined = join_outputs([(0, outputs[0]), (2, outputs[1]), (3, outputs[2])])
    assert [failure.index for failure in joined.failures] == [1, 3]
    np.testing.assert_array_equal(np.isnan(joined.scores), [False, True, False, True, False])


def test_reference_log_probs_come_back_in_order() -> None:
    prompts = [prompt.token_ids for prompt in prompts_of(5)]
    rows = groups().ask_reference_logprobs(prompts, [np.zeros(1 + i, np.int32) for i in range(5)])()
    assert [row.tolist() for row in rows] == [[10.0 + i] * (1 + i) for i in range(5)]


# --- weight sync ------------------------------------------------------------------------------------------------------


def test_a_sync_brings_every_worker_to_the_version_and_measures_the_canaries() -> None:
    samplers = [Sampler(), Sampler()]
    learner = Trainer(0.25)
    metrics = groups(rollout=samplers, learner=learner).sync(3, canaries=canaries_of(batch_of(5)))
    assert [(sampler.version, sampler.weight) for sampler in samplers] == [(3, 0.25)] * 2
    assert metrics == {"sync/version": 3.0, "sync/bytes": 4.0, "sync/canary_max_logprob_diff": 0.0}
    assert learner.asked == [2]


def test_workers_that_have_the_version_are_left_alone() -> None:
    learner = Trainer(0.25)
    roles = groups(learner=learner)
    weights = roles.publish(3, canaries=canaries_of(batch_of(2)))
    assert roles.load(weights)["sync/version"] == 3.0
    assert roles.load(weights) == {}


@pytest.mark.parametrize(("keeps_published", "loaded"), [(True, 0.25), (False, 0.75)])
def test_published_weights_are_a_snapshot_where_workers_take_them_later(
    *, keeps_published: bool, loaded: float
) -> None:
    sampler, learner = Sampler(), Trainer(0.25)
    roles = groups(rollout=[sampler], learner=learner, keeps_published=keeps_published)
    weights = roles.publish(1)
    learner.weight = 0.75
    roles.load(weights)
    assert sampler.weight == loaded


def test_shared_weights_are_adopted_without_moving_any() -> None:
    sampler = Sampler()
    sampler.weight = 0.5
    metrics = groups(rollout=[sampler], share_weights=True).sync(2, canaries=canaries_of(batch_of(1)))
    assert sampler.version == 2
    assert metrics["sync/bytes"] == 0.0


def flip_a_bit(update: WeightUpdate) -> WeightUpdate:
    return replace(update, tensors={"w": update.tensors["w"] + np.float32(1e-6)})


def other_weights(update: WeightUpdate) -> WeightUpdate:
    return pack({"w": torch.tensor(9.0)}, update.version)


def old_version(update: WeightUpdate) -> WeightUpdate:
    return replace(pack({"w": torch.tensor(0.5)}, update.version - 1), checksum=update.checksum)


class KeepsItsOwn(Sampler):
    """Acknowledges an update and goes on with the weights it had."""

    def apply_update(self, update: WeightUpdate) -> Ack:
        self.version = update.version
        return Ack(update.version, update.checksum)


class SaysTheOldVersion(Sampler):
    """Loads the update and stays at its version."""

    def apply_update(self, update: WeightUpdate) -> Ack:
        self.weight = float(unpack(update)["w"])
        return Ack(self.version, update.checksum)


@pytest.mark.parametrize(
    ("faulty", "error", "message"),
    [
        (Sampler(flip_a_bit), ChecksumError, "rollout worker rollout-1: weight update 1 has checksum"),
        (Sampler(other_weights), ChecksumError, "rollout worker rollout-1 received weights with checksum"),
        (SaysTheOldVersion(), StaleWeightsError, "rollout worker rollout-1 is at version 0 after update 1"),
        (KeepsItsOwn(), CanaryMismatchError, "rollout-1 differs from the learner by 0.5 nats"),
    ],
    ids=["damaged on the way", "other weights", "stale", "silently the old weights"],
)
def test_a_worker_that_does_not_hold_the_learners_weights_is_found_and_named(
    faulty: Sampler, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        groups(rollout=[Sampler(), faulty]).sync(1, canaries=canaries_of(batch_of(2)))


def test_a_worker_of_another_version_is_never_sampled_from() -> None:
    samplers = [Sampler(), Sampler()]
    roles = groups(rollout=samplers)
    roles.sync(1)
    samplers[1].version = 0
    with pytest.raises(StaleWeightsError, match="worker holds 0, asked was 1"):
        roles.generate(prompts_of(4), 1, seed=0, step=0, version=1)


@pytest.mark.parametrize("weight", [float("nan"), float("-inf")])
def test_a_ruined_policy_is_not_blamed_on_the_worker(weight: float) -> None:
    with pytest.raises(NonFiniteLogitsError, match=r"not finite at version 4; .*lower optimizer\.learning_rate"):
        groups(learner=Trainer(weight)).sync(4, canaries=canaries_of(batch_of(1)))


# --- waits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ask",
    [
        lambda roles: roles.ask_scores([RewardRequest("p", "1")])(),
        lambda roles: roles.learn("perplexity", ["text"]),
    ],
    ids=["reward", "learner"],
)
def test_a_wait_has_a_timeout_and_names_the_worker(ask: Callable[[RoleGroups], Any]) -> None:
    hanging = Hanging("slow-7")
    with pytest.raises(WorkerTimeoutError, match="actor slow-7 did not finish within 7 seconds"):
        ask(groups(reward=[hanging], learner=hanging))
    assert hanging.waits == [7.0]


# --- the roles of this process ----------------------------------------------------------------------------------------


def test_in_this_process_one_host_has_all_roles(tmp_path: Path, tiny_llama_folder: Path) -> None:
    with open_roles(ppo_config(tmp_path, tiny_llama_folder)) as roles:
        workers = [*roles.reward, *roles.reference, roles.learner]
        assert [worker.name for worker in workers] == ["driver"] * 3
        assert roles.share_weights
        assert roles.canary_tolerance == 1e-3
        roles.sync(0)
        assert len(roles.generate(prompts_of(2), 2, seed=0, step=0, version=0)) == 4


def test_a_coarser_precision_has_a_wider_tolerance(tmp_path: Path, tiny_llama_folder: Path) -> None:
    with open_roles(ppo_config(tmp_path, tiny_llama_folder, model={"dtype": "bfloat16"})) as roles:
        assert roles.canary_tolerance == 5e-2


# --- ranks in actors --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_rank_that_dies_ends_the_run_with_its_name_while_the_other_waits_for_it(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    placement = {"kind": "split", "learner": {"workers": 2}, "timeout_seconds": 120}
    prompts, responses = [np.array([5, 6], np.int32)] * 3, [np.array([7, 8], np.int32)] * 3
    with open_roles(ppo_config(tmp_path, tiny_llama_folder, placement=placement)) as roles:
        before = roles.learn("values", prompts, responses)
        assert [row.shape for row in before] == [(2,)] * 3
        assert isinstance(roles.learner, LearnerGroup)
        lost = roles.learner.workers[1]
        assert isinstance(lost, RayWorker)
        lost.kill()
        start = time.monotonic()
        with pytest.raises(WorkerDiedError, match=r"^actor learner-1 died during values"):
            roles.learn("values", prompts, responses)
        assert time.monotonic() - start < 60


# --- the way of the weights -------------------------------------------------------------------------------------------

GPU = {"gpus": 1}


def split_config(folder: Path, model: Path, /, tuning: str = "full", **changes: Any) -> PpoConfig:
    placement = {"kind": "split", **changes.pop("placement", {})}
    return ppo_config(folder, model, model={"tuning": {"kind": tuning}}, placement=placement, **changes)


@pytest.mark.parametrize(
    ("tuning", "placement", "expected"),
    [
        ("full", {}, False),  # on CPUs the object store is as fast
        ("full", {"learner": GPU}, False),
        ("full", {"learner": GPU, "rollout": {"gpus": 0.5}}, False),
        ("full", {"learner": GPU, "rollout": GPU}, True),
        ("full", {"learner": GPU, "rollout": GPU, "weight_transport": "object_store"}, False),
        ("lora", {"learner": GPU, "rollout": GPU}, False),
        ("lora", {"weight_transport": "collective"}, True),
    ],
)
def test_weights_are_broadcast_where_that_is_asked_for_or_known_to_pay(
    tmp_path: Path, tiny_llama_folder: Path, tuning: str, placement: dict[str, Any], *, expected: bool
) -> None:
    config = split_config(tmp_path, tiny_llama_folder, tuning, placement=placement)
    assert config.broadcasts_weights is expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rollout": {"max_policy_age": 1}, "algorithm": {"importance_cap": 2.0}}, "max_policy_age=1 sends weights"),
        ({"rollout": {"engine": {"kind": "vllm"}}}, "kind=vllm takes its weights otherwise"),
        ({"placement": {"learner": {"gpus": 0.5}, "rollout": {"gpus": 0.5}}}, "learner.gpus=0.5 shares a GPU"),
        ({"placement": {"learner": GPU}}, "one is 0, and no backend spans both devices"),
    ],
)
def test_a_collective_that_cannot_work_is_refused_with_what_to_set(
    tmp_path: Path, tiny_llama_folder: Path, changes: dict[str, Any], reason: str
) -> None:
    placement = {**changes.pop("placement", {}), "weight_transport": "collective"}
    with pytest.raises(ValueError, match=f"weight_transport=collective: .*{reason}.*; set weight_transport=auto"):
        split_config(tmp_path, tiny_llama_folder, placement=placement, **changes)
