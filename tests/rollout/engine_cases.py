"""What the contract of engines is run on: each engine, prompts of uneven length, and the learner's side of it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import LoraTuning
from policies.sequences import pad_sequences
from rollout.compiled_engine import STEPS_BEFORE_TRACE, CompiledGenerator
from rollout.config import CompiledEngineConfig, HfEngineConfig, SamplingConfig
from rollout.generation import Generator, repeat_prompts
from rollout.hf_engine import HfGenerator
from rollout.types import Completion, Prompt
from tests.rollout.fakes import prompt_of
from tests.tiny_models import randomize

EngineCase = Callable[..., Generator]
"""(backbone, sampling, *, adapter=None, side_by_side=64, merge=True) -> an engine."""

SEED, STEP = 3, 11
STOPS = tuple(range(2, 32))
"""A tenth of the vocabulary stops, so that most responses end before the limit, at different lengths."""
SAMPLING = SamplingConfig(max_response_tokens=10, stop_token_ids=STOPS)
PROMPTS = [prompt_of(str(n), [1, *range(40 + n, 40 + n + length)]) for n, length in enumerate((4, 1, 9, 2, 0, 6, 3))]


def hf(
    backbone: Backbone,
    sampling: SamplingConfig = SAMPLING,
    *,
    adapter: str | None = None,
    side_by_side: int = 64,
    merge: bool = True,
) -> HfGenerator:
    config = HfEngineConfig(batch_size_responses=side_by_side, merge_adapter=merge)
    return HfGenerator(backbone, adapter, sampling, config)


def compiled(
    backbone: Backbone,
    sampling: SamplingConfig = SAMPLING,
    *,
    adapter: str | None = None,
    side_by_side: int = 64,
    merge: bool = True,
    prefill_tokens: int = 4096,
) -> CompiledGenerator:
    config = CompiledEngineConfig(slots=side_by_side, merge_adapter=merge, prefill_tokens=prefill_tokens)
    return CompiledGenerator(backbone, adapter, sampling, config)


def traced(
    backbone: Backbone,
    sampling: SamplingConfig = SAMPLING,
    *,
    adapter: str | None = None,
    side_by_side: int = 64,
    merge: bool = True,
) -> CompiledGenerator:
    """The engine in slots as it is after its first long rollout."""
    generator = compiled(backbone, sampling, adapter=adapter, side_by_side=side_by_side, merge=merge)
    generator._steps = STEPS_BEFORE_TRACE
    return generator


ENGINES: dict[str, EngineCase] = {"hf": hf, "compiled": compiled, "traced": traced}


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
    assert [c.finish_reason for c in received] == [c.finish_reason for c in expected]
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
