"""What every engine must do: against a slow reference, against the learner, and under regroupings that must not matter.

A new engine joins `tests.rollout.engine_cases.ENGINES`.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.tokenization import decode
from rollout.config import ResponseLimits, SamplingConfig
from rollout.generation import repeat_prompts
from rollout.noise import uniforms
from rollout.responses import NonFiniteLogitsError
from rollout.types import Prompt
from rollout.weight_sync import pack, unpack
from tests.rollout.engine_cases import (
    ENGINES,
    PROMPTS,
    SAMPLING,
    SEED,
    STEP,
    STOPS,
    EngineCase,
    add_policy,
    assert_same,
    learner_logprobs,
    sample,
    tokens_of,
)
from tests.rollout.fakes import prompt_of

ARCHITECTURES = ("llama", "qwen2", "qwen3", "gpt2", "gpt_neox", "gemma", "gemma2", "mistral")
"""Rotary, learned and partly rotary positions; grouped heads; eager and fused attention; sliding windows of 8."""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> EngineCase:
    return ENGINES[request.param]


@pytest.fixture
def backbone_of(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], Backbone]:
    return lambda architecture: Backbone(tiny_model(architecture), tiny_tokenizer)


@pytest.fixture
def backbone(backbone_of: Callable[[str], Backbone]) -> Backbone:
    return backbone_of("llama")


def slow_reference(backbone: Backbone, prompt: Prompt, response_index: int, sampling: SamplingConfig) -> list[int]:
    """One response, token by token: whole forward passes without padding or cache, and the CDF summed in numpy."""
    noise = uniforms(SEED, STEP, prompt.id, response_index, sampling.max_response_tokens)
    ids = prompt.token_ids.tolist()
    for uniform in noise:
        with torch.no_grad():
            logits = backbone.model(torch.tensor([ids])).logits[0, -1].double().numpy()
        shares = np.exp((logits - logits.max()) / sampling.temperature)
        ids.append(int(np.flatnonzero(np.cumsum(shares) / shares.sum() > uniform)[0]))
        if ids[-1] in STOPS:
            break
    return ids[len(prompt.token_ids) :]


@pytest.mark.parametrize(("architecture", "temperature"), [(name, 0.7) for name in ARCHITECTURES] + [("llama", 1.0)])
def test_samples_are_those_of_a_slow_loop_without_padding_cache_or_batch(
    backbone_of: Callable[[str], Backbone], architecture: str, temperature: float
) -> None:
    # All engines in one test: the slow loop takes longer than they do.
    backbone = backbone_of(architecture)
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    expected = [slow_reference(backbone, prompt, index, sampling) for prompt in PROMPTS for index in range(2)]
    for name, engine in ENGINES.items():
        assert tokens_of(sample(engine(backbone, sampling))) == expected, name
    assert len({len(response) for response in expected}) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_do_not_depend_on_who_else_is_in_the_batch(
    engine: EngineCase, backbone_of: Callable[[str], Backbone], architecture: str
) -> None:
    backbone = backbone_of(architecture)
    expected = sample(engine(backbone))
    assert_same(sample(engine(backbone, side_by_side=3)), expected)
    alone = PROMPTS[2]
    assert_same(sample(engine(backbone), [alone], responses=1), [c for c in expected if c.prompt_id == alone.id][:1])


def test_samples_do_not_depend_on_the_order_of_the_jobs(engine: EngineCase, backbone: Backbone) -> None:
    expected = sample(engine(backbone))
    prompts, indices = repeat_prompts(PROMPTS, 2)
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = engine(backbone, side_by_side=5).generate(
        [prompts[i] for i in order], [indices[i] for i in order], seed=SEED, step=STEP
    )
    assert_same(shuffled, [expected[i] for i in order])


def test_two_workers_and_one_give_the_same_completions(engine: EngineCase, backbone: Backbone) -> None:
    prompts, indices = repeat_prompts(PROMPTS, 3)
    one = engine(backbone).generate(prompts, indices, seed=SEED, step=STEP)
    halves = [slice(0, 11), slice(11, 21)]
    two = [engine(backbone).generate(prompts[part], indices[part], seed=SEED, step=STEP) for part in halves]
    assert_same(two[0] + two[1], one)


def test_seed_step_prompt_and_index_each_give_another_response(engine: EngineCase, backbone: Backbone) -> None:
    generator = engine(backbone, SamplingConfig(max_response_tokens=12, min_response_tokens=12))
    a, b = (prompt_of(name, [1, 40, 41]) for name in "ab")

    def response(prompt: Prompt, index: int, seed: int, step: int) -> tuple[int, ...]:
        (completion,) = generator.generate([prompt], [index], seed=seed, step=step)
        return tuple(completion.token_ids.tolist())

    keys = [(a, 0, 0, 0), (b, 0, 0, 0), (a, 1, 0, 0), (a, 0, 1, 0), (a, 0, 0, 1)]
    assert len({response(*key) for key in keys}) == 5
    assert response(*keys[0]) == response(*keys[0])


@pytest.mark.parametrize(
    ("architecture", "temperature", "merge"),
    [(name, 0.7, True) for name in ARCHITECTURES] + [("gpt2", 0.7, False), ("llama", 1.0, False)],
)
def test_behavior_log_probs_are_those_that_the_learner_recomputes(
    engine: EngineCase, backbone_of: Callable[[str], Backbone], architecture: str, temperature: float, *, merge: bool
) -> None:
    backbone = backbone_of(architecture)
    add_policy(backbone, seed=1)
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    completions = sample(engine(backbone, sampling, adapter="policy", merge=merge))

    policy = CausalPolicy(backbone, adapter="policy", temperature=temperature)
    for completion, expected in zip(completions, learner_logprobs(policy, completions), strict=True):
        np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    base = CausalPolicy(backbone, adapter=None, temperature=temperature)
    off = learner_logprobs(base, completions)
    assert max(np.abs(c.logprobs - o).max() for c, o in zip(completions, off, strict=True)) > 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_bfloat16_log_probs_are_the_learners_to_two_hundredths_of_a_nat(
    engine: EngineCase, backbone_of: Callable[[str], Backbone], temperature: float
) -> None:
    backbone = backbone_of("llama")
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.mul_(0.5)  # of the size that trained weights have, relative to the width
    backbone = Backbone(backbone.model.bfloat16(), backbone.tokenizer)
    completions = sample(engine(backbone, SAMPLING.model_copy(update={"temperature": temperature})), responses=8)
    policy = CausalPolicy(backbone, adapter=None, temperature=temperature)
    for completion, expected in zip(completions, learner_logprobs(policy, completions), strict=True):
        np.testing.assert_allclose(completion.logprobs, expected, atol=2e-2)


def test_the_canary_reads_the_same_policy_as_the_sampler(engine: EngineCase, backbone: Backbone) -> None:
    generator = engine(backbone)
    completions = sample(generator)
    prompts, _ = repeat_prompts(PROMPTS, 2)
    canary = generator.logprobs([prompt.token_ids for prompt in prompts], [c.token_ids for c in completions])
    for received, completion in zip(canary, completions, strict=True):
        np.testing.assert_allclose(received, completion.logprobs, atol=1e-4)


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(engine: EngineCase, backbone: Backbone) -> None:
    completions = sample(engine(backbone), responses=6)
    for completion in completions:
        *before, last = completion.token_ids.tolist()
        assert not set(before) & set(STOPS)
        assert (completion.finish_reason == "stop") == (last in STOPS)
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 10
        assert completion.token_ids.dtype == np.int32
        assert completion.logprobs.dtype == np.float32
        assert completion.token_ids.shape == completion.logprobs.shape
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_the_tokenizers_end_of_sequence_token_stops_where_none_is_named(engine: EngineCase, backbone: Backbone) -> None:
    # At this temperature the tokens are about equally likely; eos, id 2, is one of 300.
    completions = sample(engine(backbone, SamplingConfig(max_response_tokens=30, temperature=50.0)), responses=6)
    stopped = [completion for completion in completions if completion.finish_reason == "stop"]
    assert 0 < len(stopped) < len(completions)
    assert all(completion.token_ids.tolist().index(2) == len(completion.token_ids) - 1 for completion in stopped)
    assert all(2 not in completion.token_ids for completion in completions if completion.finish_reason == "length")


def test_stop_tokens_are_not_sampled_before_the_minimum(engine: EngineCase, backbone: Backbone) -> None:
    everything = tuple(range(3, 300))
    free = SamplingConfig(max_response_tokens=6, stop_token_ids=everything)
    assert any(len(tokens) == 1 for tokens in tokens_of(sample(engine(backbone, free))))
    held = free.model_copy(update={"min_response_tokens": 4})
    for tokens in tokens_of(sample(engine(backbone, held))):
        assert len(tokens) >= 5
        assert set(tokens[:4]) <= {0, 1, 2}


def test_a_stop_string_ends_a_response_with_the_token_that_completes_it(engine: EngineCase, backbone: Backbone) -> None:
    longest = SamplingConfig(max_response_tokens=24, temperature=2.0)
    expected = tokens_of(sample(engine(backbone, longest), responses=4))
    received = sample(engine(backbone, longest.model_copy(update={"stop_strings": ("at", "he ")})), responses=4)

    def is_stopped(tokens: list[int]) -> bool:
        return any(string in decode(tokens, backbone.tokenizer) for string in ("at", "he "))

    for whole, completion in zip(expected, received, strict=True):
        end = next((n for n in range(1, len(whole) + 1) if is_stopped(whole[:n])), len(whole))
        assert completion.token_ids.tolist() == whole[:end]
        assert (completion.finish_reason == "stop") == (is_stopped(whole[:end]) or whole[end - 1] == 2)
    assert 3 < sum(is_stopped(tokens) for tokens in tokens_of(received)) < len(received)


def test_a_prompt_with_limits_of_its_own_is_answered_as_if_they_were_the_runs(
    engine: EngineCase, backbone: Backbone
) -> None:
    own = {
        "endless": ResponseLimits(max_response_tokens=20),
        "brief": ResponseLimits(max_response_tokens=2),
        "held": ResponseLimits(max_response_tokens=9, min_response_tokens=9, stop_token_ids=STOPS),
        "quoted": ResponseLimits(max_response_tokens=15, stop_token_ids=(7,), stop_strings=("a", "e")),
    }
    kinds = ["common", *own, "common", "brief"]
    prompts = [replace(prompt, limits=own.get(kind)) for prompt, kind in zip(PROMPTS, kinds, strict=True)]

    received = sample(engine(backbone, side_by_side=4), prompts, responses=3)

    for index, (prompt, kind) in enumerate(zip(PROMPTS, kinds, strict=True)):
        limits = SamplingConfig(**own[kind].model_dump()) if kind in own else SAMPLING
        assert_same(received[3 * index : 3 * index + 3], sample(engine(backbone, limits), [prompt], responses=3))
    assert len({len(completion.token_ids) for completion in received}) > 4


def test_a_padding_token_that_is_a_stop_token_too_is_kept_where_it_was_sampled(
    engine: EngineCase, tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = Backbone(tiny_model("llama"), tiny_tokenizer)
    expected = sample(engine(plain), responses=4)
    stop = next(completion.token_ids[-1] for completion in expected if completion.finish_reason == "stop")
    tiny_tokenizer_like_gpt2 = _with_pad(tiny_tokenizer, int(stop))
    assert_same(sample(engine(Backbone(plain.model, tiny_tokenizer_like_gpt2)), responses=4), expected)


def test_a_prompt_that_does_not_fit_the_context_with_the_longest_response_is_named(
    engine: EngineCase, backbone: Backbone
) -> None:
    fits, too_long = prompt_of("fits", [5] * 54), prompt_of("too long", [5] * 55)
    assert len(engine(backbone).generate([fits], [0], seed=0, step=0)) == 1
    with pytest.raises(
        ValueError, match=r"'too long' has 55 tokens; with max_response_tokens=10 .* context of 64 tokens"
    ):
        engine(backbone).generate([fits, too_long], [0, 0], seed=0, step=0)


@pytest.mark.parametrize("token_id", [-1, 300])
def test_a_stop_token_outside_the_vocabulary_is_refused(engine: EngineCase, backbone: Backbone, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"stop_token_ids holds {token_id}; the model's tokens are 0 to 299"):
        engine(backbone, SamplingConfig(stop_token_ids=(2, token_id)))


def test_weights_with_nan_stop_the_rollout_with_the_reason(engine: EngineCase, backbone: Backbone) -> None:
    with torch.no_grad():
        next(backbone.model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLogitsError, match="not finite at version 0; its weights hold NaN"):
        sample(engine(backbone))


def test_new_weights_change_the_samples_and_the_version_they_carry(
    engine: EngineCase, backbone: Backbone, backbone_of: Callable[[str], Backbone]
) -> None:
    other = backbone_of("llama")
    add_policy(backbone, seed=1)
    add_policy(other, seed=7)
    learner = CausalPolicy(other, adapter="policy", temperature=1.0)
    generator = engine(backbone, adapter="policy")
    before = sample(generator)

    generator.load_weights(unpack(pack(learner.weights(), version=5)), version=5)
    after = sample(generator)

    assert {completion.policy_version for completion in before} == {0}
    assert {completion.policy_version for completion in after} == {5}
    assert tokens_of(after) != tokens_of(before)
    assert_same(after, sample(engine(other, adapter="policy")))


def test_full_weights_are_loaded_where_there_is_no_adapter(
    engine: EngineCase, backbone: Backbone, backbone_of: Callable[[str], Backbone]
) -> None:
    other = backbone_of("llama")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.9)
    generator = engine(backbone)
    generator.load_weights(CausalPolicy(other, adapter=None, temperature=1.0).weights(), version=1)
    assert_same(sample(generator), sample(engine(other)))


def test_weights_under_other_names_are_refused_and_the_version_stays(engine: EngineCase, backbone: Backbone) -> None:
    generator = engine(backbone)
    with pytest.raises(ValueError, match="missing"):
        generator.load_weights({"other": torch.zeros(1)}, version=1)
    assert generator.version == 0


def test_a_version_can_be_taken_over_without_weights(engine: EngineCase, backbone: Backbone) -> None:
    generator = engine(backbone)
    generator.adopt_version(8)
    assert {completion.policy_version for completion in sample(generator)} == {8}


@pytest.mark.parametrize("merge", [True, False])
def test_sampling_leaves_the_model_as_it_was(engine: EngineCase, backbone: Backbone, *, merge: bool) -> None:
    add_policy(backbone, seed=1)
    backbone.adapters.trainable("policy")
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in backbone.model.named_parameters()}
    attention = backbone.model.config._attn_implementation

    sample(engine(backbone, adapter="policy", merge=merge))

    assert backbone.adapters.active is None
    assert torch.is_grad_enabled()
    assert backbone.model.config._attn_implementation == attention
    assert not any("forward" in vars(module) for module in backbone.model.modules())
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]


def test_an_adapter_is_merged_only_where_that_loses_no_precision(
    engine: EngineCase, tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    backbone = Backbone(tiny_model("llama").bfloat16(), tiny_tokenizer)
    add_policy(backbone, seed=1)
    merged, separate = (sample(engine(backbone, adapter="policy", merge=merge)) for merge in (True, False))
    assert tokens_of(merged) == tokens_of(separate)
    for one, other in zip(merged, separate, strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_no_jobs_give_no_completions(engine: EngineCase, backbone: Backbone) -> None:
    assert engine(backbone).generate([], [], seed=0, step=0) == []


def _with_pad(tokenizer: PreTrainedTokenizerBase, token_id: int) -> PreTrainedTokenizerBase:
    copy = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>")
    copy.pad_token = tokenizer.convert_ids_to_tokens(token_id)
    return copy
