"""Weights on their way to real samplers: every injected fault is caught, with the worker's name and the size of it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.loading import POLICY_ADAPTER, load_backbone, prepare_policy
from rlhf.config import PpoConfig
from rlhf.role_groups import CanarySequences, RoleGroups
from rlhf.roles import RoleHost
from rlhf.runtime.workers import LocalWorker
from rollout.generation import repeat_prompts
from rollout.pool import RolloutPool
from rollout.types import Completion
from rollout.weight_feed import WeightFeed
from rollout.weight_sync import CanaryMismatchError, StaleWeightsError, WeightMismatchError, pack
from rollout.worker import RolloutWorker
from tests.rollout.fakes import InProcessHandle, MortalHandle, prompt_of
from tests.tiny_models import RAGGED, randomize
from tests.tiny_ppo import ppo_config

LORA = {"kind": "lora", "rank": 2, "alpha": 16.0}
CANARIES: CanarySequences = (
    [np.array(prompt, np.int32) for prompt, _ in RAGGED],
    [np.array(response, np.int32) for _, response in RAGGED],
)
JOBS = repeat_prompts([prompt_of("a", [1, 40, 41]), prompt_of("b", [1, 50]), prompt_of("c", [1, 60, 61, 62])], 2)


class Run:
    """A learner and two samplers, each with a model of its own; the second sampler is the one to spoil."""

    def __init__(self, config: PpoConfig, *, bucket_bytes: int = 2**20) -> None:
        self.learner = RoleHost(config, ["learner"])
        self.samplers = [RoleHost(config, ["rollout"]) for _ in range(2)]
        handles = [LocalWorker(f"rollout-{i}", sampler) for i, sampler in enumerate(self.samplers)]
        self.pool = RolloutPool(handles, timeout_seconds=60.0)
        self.roles = RoleGroups(
            rollout=self.pool,
            reward=[],
            reference=[],
            learner=LocalWorker("learner", self.learner),
            share_weights=False,
            timeout_seconds=60.0,
            canary_tolerance=1e-3,
            bucket_bytes=bucket_bytes,
        )

    def train(self, *, seed: int) -> None:
        """Stands in for an update: another policy, far from the one before."""
        randomize(self.learner._backbone.adapters, POLICY_ADAPTER, seed=seed)

    def sync(self, version: int) -> dict[str, float]:
        return self.roles.sync(version, canaries=CANARIES)

    def sample(self, version: int) -> list[Completion]:
        return list(self.pool.generate(*JOBS, seed=0, step=0, policy_version=version).completions)


@pytest.fixture
def run(tmp_path: Path, tiny_llama_folder: Path) -> Run:
    return Run(ppo_config(tmp_path, tiny_llama_folder, model={"tuning": LORA}))


def worker_of(host: RoleHost) -> RolloutWorker:
    return host._rollout  # what is spoiled here has no public door


def engine_of(host: RoleHost) -> Any:
    return worker_of(host)._generator


def spoil_loading(host: RoleHost, spoil: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """The engine loads something else than it is handed, and says that all is well."""
    engine = engine_of(host)
    load = engine.load_weights
    engine.load_weights = lambda tensors, *, version: load(spoil(dict(tensors)), version=version)


def not_delivered(host: RoleHost) -> None:
    engine = engine_of(host)
    engine.load_weights = lambda _, *, version: engine.adopt_version(version)


def one_tensor_scaled(host: RoleHost) -> None:
    def scale(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in tensors if "layers.1." in name and "lora_B" in name)
        return tensors | {name: 1.01 * tensors[name]}

    spoil_loading(host, scale)


def alpha_lost(host: RoleHost) -> None:
    for _, layer in host._backbone.adapters._layers.of("policy"):
        cast(Any, layer).scaling[POLICY_ADAPTER] = 1.0


def test_without_a_fault_samplers_hold_the_learners_weights(run: Run) -> None:
    for version in (1, 2):
        run.train(seed=version)
        metrics = run.sync(version)
        assert metrics["sync/version"] == version
        assert 0 < metrics["sync/bytes"] < 50_000  # the adapter, not the model
        assert metrics["sync/canary_max_logprob_diff"] < 1e-5
        assert {completion.policy_version for completion in run.sample(version)} == {version}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (not_delivered, r"rollout-1 .*lora_[AB]\.weight differs by [\d.]+;"),
        (one_tensor_scaled, r"rollout-1 .*layers\.1\..*lora_B\.weight differs by 0\.0\d+;"),
        (alpha_lost, r"rollout-1 .*scaling of model\.layers.* differs by 7;"),
    ],
)
def test_a_fault_is_read_back_with_the_worker_the_tensor_and_its_size(
    run: Run, fault: Callable[[RoleHost], None], message: str
) -> None:
    run.train(seed=1)
    fault(run.samplers[1])
    with pytest.raises(WeightMismatchError, match=message):
        run.sync(1)


def test_a_change_too_small_for_any_canary_is_read_back(run: Run) -> None:
    def nudge(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = next(name for name in tensors if "lora_B" in name)
        tensor = tensors[name].clone()
        tensor[0, 0] = torch.nextafter(tensor[0, 0], torch.tensor(9.0))
        return tensors | {name: tensor}

    run.train(seed=1)
    spoil_loading(run.samplers[1], nudge)
    with pytest.raises(WeightMismatchError, match=r"rollout-1 .*lora_B\.weight differs by \d\.?\d*e-\d+"):
        run.sync(1)


@pytest.mark.parametrize("fault", [not_delivered, one_tensor_scaled, alpha_lost])
def test_where_nothing_can_be_read_back_the_canary_finds_the_fault(run: Run, fault: Callable[[RoleHost], None]) -> None:
    run.train(seed=1)
    worker_of(run.samplers[1])._receiver._policy = None
    fault(run.samplers[1])
    with pytest.raises(CanaryMismatchError, match=r"rollout worker rollout-1 differs from the learner by [\d.]+ nats"):
        run.sync(1)


def test_a_wrong_version_is_caught_at_the_sync(run: Run) -> None:
    engine = engine_of(run.samplers[1])
    load = engine.load_weights
    engine.load_weights = lambda tensors, *, version: load(tensors, version=version - 1)
    with pytest.raises(StaleWeightsError, match="rollout-1 is at version 1 after update 2"):
        run.sync(2)


def test_a_wrong_version_is_caught_before_it_samples(run: Run) -> None:
    run.sync(1)
    engine_of(run.samplers[1]).adopt_version(0)
    with pytest.raises(StaleWeightsError, match=r"rollout worker rollout-1: .*holds policy version 0, asked was 1"):
        run.sample(1)


def test_a_stale_cache_is_caught_although_the_weights_are_right(run: Run) -> None:
    run.train(seed=1)
    run.sync(1)
    run.sample(1)
    host = run.samplers[1]
    adapters, engine = host._backbone.adapters, engine_of(host)
    cached = {name: tensor.clone() for name, tensor in adapters.state(POLICY_ADAPTER).items()}
    decode = engine.generate

    def with_old_copy(*arguments: Any, **keywords: Any) -> list[Completion]:
        fresh = {name: tensor.clone() for name, tensor in adapters.state(POLICY_ADAPTER).items()}
        adapters.load_state(POLICY_ADAPTER, cached)
        completions = decode(*arguments, **keywords)
        adapters.load_state(POLICY_ADAPTER, fresh)
        return completions

    engine.generate = with_old_copy
    run.train(seed=2)
    assert run.sync(2)["sync/canary_max_logprob_diff"] < 1e-5
    with pytest.raises(CanaryMismatchError, match=r"rollout-1: the engine reports .* differ by [\d.]+ nats"):
        run.sample(2)


# --- all weights, in buckets ------------------------------------------------------------------------------------------


def test_full_weights_go_in_bounded_buckets_and_make_the_samplers_equal(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    limit = 5000
    run = Run(ppo_config(tmp_path, tiny_llama_folder, model={"tuning": {"kind": "full"}}), bucket_bytes=limit)
    sizes: list[int] = []
    pack_update = run.learner.pack_update

    def watched(version: int, bucket: int, bucket_bytes: int) -> Any:
        header = pack_update(version, bucket, bucket_bytes)
        sizes.append(header.size_bytes)
        return header

    run.learner.pack_update = watched
    with torch.no_grad():
        for parameter in run.learner._backbone.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    metrics = run.sync(1)
    assert metrics["sync/canary_max_logprob_diff"] == 0.0
    assert metrics["sync/bytes"] == sum(sizes) == sum(p.nbytes for p in run.learner._backbone.model.parameters())
    assert len(sizes) > 10
    assert max(sizes) <= limit
    assert len(run.sample(1)) == 6


# --- no drift ---------------------------------------------------------------------------------------------------------


def snapshot(host: RoleHost, names: Collection[str]) -> dict[str, Tensor]:
    return {name: p.clone() for name, p in host._backbone.model.named_parameters() if name in names}


def test_a_hundred_updates_in_bfloat16_end_where_one_fresh_merge_does(tmp_path: Path, tiny_llama_folder: Path) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": LORA, "dtype": "bfloat16"})
    host, learner = RoleHost(config, ["rollout"]), load_backbone(config.model)
    prepare_policy(learner, config.model.tuning, seed=0)
    base = snapshot(host, {name for name, _ in host._backbone.model.named_parameters() if "lora" not in name})
    merged = base
    for version in range(1, 101):
        randomize(learner.adapters, POLICY_ADAPTER, seed=version)
        ack = host.apply_update(pack(learner.adapters.state(POLICY_ADAPTER), version))
        assert ack.mismatch is None
        with host._backbone.adapters.merged(POLICY_ADAPTER):
            merged = snapshot(host, base)
    assert len(host.generate(*JOBS, seed=0, step=0, expected_version=100)) == 6

    fresh = RoleHost(config, ["rollout"])
    fresh.apply_update(pack(learner.adapters.state(POLICY_ADAPTER), 100))
    with fresh._backbone.adapters.merged(POLICY_ADAPTER):
        expected = snapshot(fresh, base)
    assert all(torch.equal(merged[name], expected[name]) for name in base)
    assert any(not torch.equal(merged[name], base[name]) for name in base)
    after = snapshot(host, base)
    assert all(torch.equal(after[name], base[name]) for name in base)
    one, other = (h.canary(*CANARIES) for h in (host, fresh))
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- a worker that is lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dies_at", [[0], [1, 2]])
def test_a_sampler_that_dies_is_rebuilt_with_the_learners_weights_and_samples_the_same(
    tmp_path: Path, tiny_llama_folder: Path, dies_at: list[int]
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": LORA})
    learner = RoleHost(config, ["learner"])
    randomize(learner._backbone.adapters, POLICY_ADAPTER, seed=1)

    def sample(dies_at: Sequence[int]) -> tuple[MortalHandle, Sequence[Completion]]:
        worker = MortalHandle("rollout-0", lambda: RoleHost(config, ["rollout"]), dies_at=dies_at)
        pool = RolloutPool([worker], timeout_seconds=60.0, responses_per_call=2, max_worker_restarts=2)
        handle = InProcessHandle("learner", learner)
        pool.update_weights(WeightFeed(handle, 1, bucket_bytes=2**20, timeout_seconds=60.0, is_snapshot=False))
        return worker, pool.generate(*JOBS, seed=0, step=0, policy_version=1).completions

    (_, expected), (mortal, completions) = sample([]), sample(dies_at)
    assert mortal.restarts == len(dies_at)
    for mine, theirs in zip(completions, expected, strict=True):
        assert np.array_equal(mine.token_ids, theirs.token_ids)
        assert np.array_equal(mine.logprobs, theirs.logprobs)
