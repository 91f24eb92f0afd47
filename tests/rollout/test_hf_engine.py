"""The engine against a slow reference, against the learner's log-probs, and under regroupings that must not matter."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.causal import CausalPolicy
from policies.config import LoraTuning
from policies.loading import Backbone
from policies.sequences import pad_sequences
from rollout.config import HfEngineConfig, SamplingConfig
from rollout.generation import Generator, repeat_prompts
from rollout.hf_engine import HfGenerator, NonFiniteLogitsError
from rollout.noise import uniforms
from rollout.pool import RolloutPool
from rollout.types import Completion, Prompt
from rollout.weight_sync import pack, unpack
from rollout.worker import RolloutWorker
from tests.rollout.fakes import InProcessHandle, prompt_of
from tests.tiny_models import randomize

ARCHITECTURES = ("llama", "gpt2", "qwen3", "gpt_neox", "gemma2")
SEED, STEP = 3, 11
STOPS = tuple(range(2, 32))
"""A tenth of the vocabulary stops, so that most responses end before the limit, at different lengths."""
SAMPLING = SamplingConfig(max_response_tokens=10, stop_token_ids=STOPS)
PROMPTS = [prompt_of(str(n), [1, *range(40 + n, 40 + n + length)]) for n, length in enumerate((4, 1, 9, 2, 0, 6, 3))]


@pytest.fixture
def backbone_of(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], Backbone]:
    return lambda architecture: Backbone(tiny_model(architecture), tiny_tokenizer)


@pytest.fixture
def backbone(backbone_of: Callable[[str], Backbone]) -> Backbone:
    return backbone_of("llama")


def engine(
    backbone: Backbone,
    sampling: SamplingConfig = SAMPLING,
    *,
    adapter: str | None = None,
    batch: int = 64,
    merge: bool = True,
) -> HfGenerator:
    return HfGenerator(backbone, adapter, sampling, HfEngineConfig(batch_size_responses=batch, merge_adapter=merge))


@torch.no_grad()
def add_policy(backbone: Backbone, *, seed: int) -> None:
    """An adapter that changes the output, by little enough that float32 still resolves log-probs to 1e-5 nats."""
    backbone.adapters.add("policy", LoraTuning(rank=2), seed=0)
    randomize(backbone.adapters, "policy", seed=seed)
    for _, parameter in backbone.adapters.parameters("policy"):
        parameter.mul_(0.4)


def sample(generator: Generator, prompts: Sequence[Prompt] = PROMPTS, *, responses: int = 2) -> list[Completion]:
    return generator.generate(*repeat_prompts(prompts, responses), seed=SEED, step=STEP)


def tokens_of(completions: Sequence[Completion]) -> list[list[int]]:
    return [completion.token_ids.tolist() for completion in completions]


def assert_same(received: Sequence[Completion], expected: Sequence[Completion]) -> None:
    assert [(c.prompt_id, c.response_index) for c in received] == [(c.prompt_id, c.response_index) for c in expected]
    assert tokens_of(received) == tokens_of(expected)
    for ours, theirs in zip(received, expected, strict=True):
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)


def learner_logprobs(policy: CausalPolicy, completions: Sequence[Completion]) -> list[np.ndarray]:
    prompt_ids = {prompt.id: prompt.token_ids for prompt in PROMPTS}
    batch = pad_sequences(
        [prompt_ids[completion.prompt_id] for completion in completions],
        [completion.token_ids for completion in completions],
        pad_id=0,
    )
    with torch.no_grad():
        rows = policy.logprobs(batch).logprobs.numpy()
    return [row[: len(completion.token_ids)] for row, completion in zip(rows, completions, strict=True)]


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
    backbone = backbone_of(architecture)
    sampling = SAMPLING.model_copy(update={"temperature": temperature})
    expected = [slow_reference(backbone, prompt, index, sampling) for prompt in PROMPTS for index in range(2)]
    assert tokens_of(sample(engine(backbone, sampling))) == expected
    assert len({len(response) for response in expected}) > 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_samples_do_not_depend_on_who_else_is_in_the_batch(
    backbone_of: Callable[[str], Backbone], architecture: str
) -> None:
    backbone = backbone_of(architecture)
    expected = sample(engine(backbone))
    assert_same(sample(engine(backbone, batch=3)), expected)
    alone = PROMPTS[2]
    assert_same(sample(engine(backbone), [alone], responses=1), [c for c in expected if c.prompt_id == alone.id][:1])


def test_samples_do_not_depend_on_the_order_of_the_jobs(backbone: Backbone) -> None:
    expected = sample(engine(backbone))
    prompts, indices = repeat_prompts(PROMPTS, 2)
    order = np.random.default_rng(0).permutation(len(prompts))
    shuffled = engine(backbone, batch=5).generate(
        [prompts[i] for i in order], [indices[i] for i in order], seed=SEED, step=STEP
    )
    assert_same(shuffled, [expected[i] for i in order])


def test_two_workers_and_one_give_the_same_completions(backbone: Backbone) -> None:
    def pool(workers: int) -> RolloutPool:
        made = [InProcessHandle(f"rollout-{i}", RolloutWorker(engine(backbone))) for i in range(workers)]
        return RolloutPool(made, timeout_seconds=60)

    jobs = repeat_prompts(PROMPTS, 3)
    one, two = (pool(workers).generate(*jobs, seed=SEED, step=STEP, policy_version=0) for workers in (1, 2))
    assert_same(two, one)


def test_seed_step_prompt_and_index_each_give_another_response(backbone: Backbone) -> None:
    generator = engine(backbone, SamplingConfig(max_response_tokens=12, min_response_tokens=12))
    a, b = (prompt_of(name, [1, 40, 41]) for name in "ab")

    def response(prompt: Prompt, index: int, seed: int, step: int) -> tuple[int, ...]:
        (completion,) = generator.generate([prompt], [index], seed=seed, step=step)
        return tuple(completion.token_ids.tolist())

    keys = [(a, 0, 0, 0), (b, 0, 0, 0), (a, 1, 0, 0), (a, 0, 1, 0), (a, 0, 0, 1)]
    assert len({response(*key) for key in keys}) == 5
    assert response(*keys[0]) == response(*keys[0])


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("architecture", "temperature"), [(name, 0.7) for name in ARCHITECTURES] + [("llama", 1.0)])
def test_behavior_log_probs_are_those_that_the_learner_recomputes(
    backbone_of: Callable[[str], Backbone], architecture: str, temperature: float, *, merge: bool
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


def test_the_canary_reads_the_same_policy_as_the_sampler(backbone: Backbone) -> None:
    generator = engine(backbone)
    completions = sample(generator)
    prompts, _ = repeat_prompts(PROMPTS, 2)
    canary = generator.logprobs([prompt.token_ids for prompt in prompts], [c.token_ids for c in completions])
    for received, completion in zip(canary, completions, strict=True):
        np.testing.assert_allclose(received, completion.logprobs, atol=1e-4)


def test_a_response_ends_with_its_first_stop_token_or_at_the_limit(backbone: Backbone) -> None:
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


def test_the_tokenizers_end_of_sequence_token_stops_where_none_is_named(backbone: Backbone) -> None:
    # At this temperature the tokens are about equally likely; eos, id 2, is one of 300.
    completions = sample(engine(backbone, SamplingConfig(max_response_tokens=30, temperature=50.0)), responses=6)
    stopped = [completion for completion in completions if completion.finish_reason == "stop"]
    assert 0 < len(stopped) < len(completions)
    assert all(completion.token_ids.tolist().index(2) == len(completion.token_ids) - 1 for completion in stopped)
    assert all(2 not in completion.token_ids for completion in completions if completion.finish_reason == "length")


def test_stop_tokens_are_not_sampled_before_the_minimum(backbone: Backbone) -> None:
    everything = tuple(range(3, 300))
    free = SamplingConfig(max_response_tokens=6, stop_token_ids=everything)
    assert any(len(tokens) == 1 for tokens in tokens_of(sample(engine(backbone, free))))
    held = free.model_copy(update={"min_response_tokens": 4})
    for tokens in tokens_of(sample(engine(backbone, held))):
        assert len(tokens) >= 5
        assert set(tokens[:4]) <= {0, 1, 2}


def test_a_padding_token_that_is_a_stop_token_too_is_kept_where_it_was_sampled(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    plain = Backbone(tiny_model("llama"), tiny_tokenizer)
    expected = sample(engine(plain), responses=4)
    stop = next(completion.token_ids[-1] for completion in expected if completion.finish_reason == "stop")
    tiny_tokenizer_like_gpt2 = _with_pad(tiny_tokenizer, int(stop))
    assert_same(sample(engine(Backbone(plain.model, tiny_tokenizer_like_gpt2)), responses=4), expected)


def test_a_prompt_that_does_not_fit_the_context_with_the_longest_response_is_named(backbone: Backbone) -> None:
    fits, too_long = prompt_of("fits", [5] * 54), prompt_of("too long", [5] * 55)
    assert len(engine(backbone).generate([fits], [0], seed=0, step=0)) == 1
    with pytest.raises(
        ValueError, match=r"'too long' has 55 tokens; with max_response_tokens=10 .* context of 64 tokens"
    ):
        engine(backbone).generate([fits, too_long], [0, 0], seed=0, step=0)


@pytest.mark.parametrize("token_id", [-1, 300])
def test_a_stop_token_outside_the_vocabulary_is_refused(backbone: Backbone, token_id: int) -> None:
    with pytest.raises(ValueError, match=f"stop_token_ids holds {token_id}; the model's tokens are 0 to 299"):
        engine(backbone, SamplingConfig(stop_token_ids=(2, token_id)))


def test_weights_with_nan_stop_the_rollout_with_the_reason(backbone: Backbone) -> None:
    with torch.no_grad():
        next(backbone.model.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLogitsError, match="not finite at version 0; its weights hold NaN"):
        sample(engine(backbone))


def test_the_models_own_generation_settings_change_nothing_and_come_back(backbone: Backbone) -> None:
    expected = sample(engine(backbone))
    own = backbone.model.generation_config
    own.update(repetition_penalty=5.0, suppress_tokens=[30, 31, 32], top_k=1, min_new_tokens=12, num_beams=3)
    assert_same(sample(engine(backbone)), expected)
    assert backbone.model.generation_config is own


def test_new_weights_change_the_samples_and_the_version_they_carry(
    backbone: Backbone, backbone_of: Callable[[str], Backbone]
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
    backbone: Backbone, backbone_of: Callable[[str], Backbone]
) -> None:
    other = backbone_of("llama")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.mul_(0.9)
    generator = engine(backbone)
    generator.load_weights(CausalPolicy(other, adapter=None, temperature=1.0).weights(), version=1)
    assert_same(sample(generator), sample(engine(other)))


def test_weights_under_other_names_are_refused_and_the_version_stays(backbone: Backbone) -> None:
    generator = engine(backbone)
    with pytest.raises(ValueError, match="missing"):
        generator.load_weights({"other": torch.zeros(1)}, version=1)
    assert generator.version == 0


def test_a_version_can_be_taken_over_without_weights(backbone: Backbone) -> None:
    generator = engine(backbone)
    generator.adopt_version(8)
    assert {completion.policy_version for completion in sample(generator)} == {8}


@pytest.mark.parametrize("merge", [True, False])
def test_sampling_leaves_the_model_as_it_was(backbone: Backbone, *, merge: bool) -> None:
    add_policy(backbone, seed=1)
    backbone.adapters.trainable("policy")
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in backbone.model.named_parameters()}

    sample(engine(backbone, adapter="policy", merge=merge))

    assert backbone.adapters.active is None
    for name, parameter in backbone.model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]


def test_an_adapter_is_merged_only_where_that_loses_no_precision(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    backbone = Backbone(tiny_model("llama").bfloat16(), tiny_tokenizer)
    add_policy(backbone, seed=1)
    merged, separate = (sample(engine(backbone, adapter="policy", merge=merge)) for merge in (True, False))
    assert tokens_of(merged) == tokens_of(separate)
    for one, other in zip(merged, separate, strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_no_jobs_give_no_completions(backbone: Backbone) -> None:
    assert engine(backbone).generate([], [], seed=0, step=0) == []


def _with_pad(tokenizer: PreTrainedTokenizerBase, token_id: int) -> PreTrainedTokenizerBase:
    copy = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<eos>")
    copy.pad_token = tokenizer.convert_ids_to_tokens(token_id)
    return copy
