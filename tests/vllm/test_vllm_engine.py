"""The contract of an engine, held by a real vLLM. `make test-vllm` builds its environment and runs this folder."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import FullTuning, LoraTuning, ModelConfig
from policies.loading import POLICY_ADAPTER, load_backbone, prepare_policy
from rollout.config import HfEngineConfig, SamplingConfig, VllmEngineConfig
from rollout.generation import Generator, repeat_prompts
from rollout.hf_engine import HfGenerator
from rollout.pool import Canary, RolloutPool
from rollout.types import Completion, PerToken, TokenIds
from rollout.weight_sync import CanaryMismatchError, StaleWeightsError, pack
from rollout.worker import RolloutWorker
from tests.rollout.fakes import InProcessHandle, Weights, prompt_of
from tests.tiny_models import randomize

pytest.importorskip("vllm", reason="vLLM is not installed; `make test-vllm` runs these in an environment of their own")

from rollout.vllm_engine import VllmGenerator

STOPS = tuple(range(2, 32))
SAMPLING = SamplingConfig(temperature=0.7, max_response_tokens=12, stop_token_ids=STOPS)
PROMPTS = [prompt_of(str(n), [1, *range(40 + n, 40 + n + length)]) for n, length in enumerate((4, 1, 9, 2, 0, 6, 3))]
LORA = LoraTuning(rank=4, alpha=12.0)


@pytest.fixture(scope="module")
def adapted(llama_folder: Path) -> VllmGenerator:
    return VllmGenerator(ModelConfig(path=str(llama_folder), tuning=LORA), SAMPLING, VllmEngineConfig())


@pytest.fixture
def learner(llama_folder: Path) -> Backbone:
    """The learner's model, with an adapter that changes the output."""
    return backbone_with_adapter(llama_folder, seed=5)


def backbone_with_adapter(llama_folder: Path, *, seed: int) -> Backbone:
    backbone = load_backbone(ModelConfig(path=str(llama_folder)))
    prepare_policy(backbone, LORA, seed=0)
    randomize(backbone.adapters, POLICY_ADAPTER, seed=seed)
    with torch.no_grad():
        for _, parameter in backbone.adapters.parameters(POLICY_ADAPTER):
            parameter *= 0.3  # So that float32 still resolves log-probs to 1e-4 nats.
    return backbone


def reference_engine(backbone: Backbone, adapter: str | None, sampling: SamplingConfig = SAMPLING) -> Generator:
    return HfGenerator(backbone, adapter, sampling, HfEngineConfig())


def sample(generator: Generator, *, step: int = 4) -> list[Completion]:
    prompts, indices = repeat_prompts(PROMPTS, 2)
    return generator.generate(prompts, indices, seed=3, step=step)


def learner_logprobs(backbone: Backbone, completions: list[Completion], adapter: str | None) -> list[PerToken]:
    policy = CausalPolicy(backbone, adapter=adapter, temperature=SAMPLING.temperature)
    prompts, _ = repeat_prompts(PROMPTS, 2)
    return policy.response_logprobs(
        [prompt.token_ids for prompt in prompts],
        [completion.token_ids for completion in completions],
        token_budget=4096,
    )


def pairs(completions: list[Completion]) -> tuple[list[TokenIds], list[TokenIds]]:
    prompts, _ = repeat_prompts(PROMPTS, 2)
    return [prompt.token_ids for prompt in prompts], [completion.token_ids for completion in completions]


def require_equal(left: list[Completion], right: list[Completion]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.token_ids, b.token_ids)
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
        assert (a.prompt_id, a.response_index, a.finish_reason) == (b.prompt_id, b.response_index, b.finish_reason)


def test_a_worker_without_weights_refuses_to_sample(adapted: VllmGenerator) -> None:
    if adapted.version >= 0:
        pytest.skip("another test has given it weights already")
    with pytest.raises(StaleWeightsError, match="holds policy version -1, asked was 0"):
        RolloutWorker(adapted).generate(PROMPTS, [0] * len(PROMPTS), seed=0, step=0, expected_version=0)


def test_an_adapter_arrives_and_samples_what_the_reference_engine_samples(
    adapted: VllmGenerator, learner: Backbone
) -> None:
    adapted.load_weights(learner.adapters.state(POLICY_ADAPTER), version=1)
    received, expected = sample(adapted), sample(reference_engine(learner, POLICY_ADAPTER))
    require_equal(received, expected)
    assert {completion.policy_version for completion in received} == {1}
    assert len({completion.finish_reason for completion in received}) == 2, "both ways to end should occur"


def test_its_log_probs_are_those_of_the_learner(adapted: VllmGenerator, learner: Backbone) -> None:
    adapted.load_weights(learner.adapters.state(POLICY_ADAPTER), version=2)
    completions = sample(adapted)
    expected = learner_logprobs(learner, completions, POLICY_ADAPTER)
    canary = adapted.logprobs(*pairs(completions))
    for completion, forced, logprobs in zip(completions, canary, expected, strict=True):
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=1e-4)
        np.testing.assert_allclose(forced, logprobs, atol=1e-4)


def test_a_new_version_replaces_the_old_one_and_its_cache(adapted: VllmGenerator, llama_folder: Path) -> None:
    for version in (3, 4):
        backbone = backbone_with_adapter(llama_folder, seed=version)
        adapted.load_weights(backbone.adapters.state(POLICY_ADAPTER), version=version)
        # The same prompts and noise: cached keys and values of the version before would show here.
        require_equal(sample(adapted), sample(reference_engine(backbone, POLICY_ADAPTER)))


def test_the_samples_do_not_depend_on_order_or_company(adapted: VllmGenerator, learner: Backbone) -> None:
    adapted.load_weights(learner.adapters.state(POLICY_ADAPTER), version=5)
    prompts, indices = repeat_prompts(PROMPTS, 2)
    together = adapted.generate(prompts, indices, seed=3, step=4)
    backwards = adapted.generate(prompts[::-1], indices[::-1], seed=3, step=4)[::-1]
    alone = [adapted.generate([p], [i], seed=3, step=4)[0] for p, i in zip(prompts[:4], indices[:4], strict=True)]
    require_equal(backwards, together)
    require_equal(alone, together[:4])


def without(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def one_scaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    name = next(name for name in tensors if "lora_B" in name)
    return {**tensors, name: tensors[name] * 1.01}


def alpha_lost(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    scale = LORA.rank / LORA.alpha
    return {name: tensor * scale if "lora_B" in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("damage", [without, one_scaled, alpha_lost])
def test_the_canary_names_a_worker_whose_weights_are_not_the_learners(
    adapted: VllmGenerator, learner: Backbone, damage: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> None:
    worker = RolloutWorker(adapted)
    pool = RolloutPool([InProcessHandle("vllm-0", worker)], timeout_seconds=60)
    version = max(adapted.version, 0) + 1
    state = learner.adapters.state(POLICY_ADAPTER)
    pool.update_weights(Weights(pack(damage(state), version)))
    completions = sample(adapted)
    canary = Canary(*pairs(completions), learner_logprobs(learner, completions, POLICY_ADAPTER), tolerance=1e-3)
    with pytest.raises(CanaryMismatchError, match="vllm-0 differs from the learner by"):
        pool.verify_canary(canary)
    pool.update_weights(Weights(pack(state, version + 1)))
    assert pool.verify_canary(canary) < 1e-4


@pytest.fixture(scope="module")
def full(llama_folder: Path) -> VllmGenerator:
    return VllmGenerator(ModelConfig(path=str(llama_folder), tuning=FullTuning()), SAMPLING, VllmEngineConfig())


def test_full_weights_arrive(full: VllmGenerator, llama_folder: Path) -> None:
    backbone = load_backbone(ModelConfig(path=str(llama_folder)))
    generator = torch.Generator().manual_seed(7)
    for version in (1, 2):
        with torch.no_grad():
            for parameter in backbone.model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        full.load_weights(backbone.weights(None), version=version)
        require_equal(sample(full), sample(reference_engine(backbone, None)))
