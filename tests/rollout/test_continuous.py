"""Who decodes when: responses whose lengths are fixed by their limits, on a model that notes what it is asked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from rollout.config import ResponseLimits, SamplingConfig
from rollout.generation import repeat_prompts
from rollout.types import Prompt
from tests.rollout.engine_cases import compiled, tokens_of
from tests.rollout.fakes import prompt_of


class NotingBackbone(Backbone):
    """Notes (rows, width) of every forward pass with a cache: prompts first, then one column a step."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(model, tokenizer)
        self.passes: list[tuple[int, int]] = []

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        *,
        cache: Cache | None = None,
        read: Tensor | None = None,
    ) -> Tensor:
        if cache is not None:
            self.passes.append((input_ids.shape[0], input_ids.shape[1]))
        return super().hidden_states(input_ids, attention_mask, position_ids, cache=cache, read=read)

    @property
    def prefills(self) -> list[tuple[int, int]]:
        return [shape for shape in self.passes if shape[1] > 1]

    @property
    def rows_of_steps(self) -> list[int]:
        return [rows for rows, width in self.passes if width == 1]


@pytest.fixture
def backbone(tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase) -> NotingBackbone:
    return NotingBackbone(tiny_model("llama"), tiny_tokenizer)


def of_length(name: str, tokens: int, *, prompt_tokens: int = 3) -> Prompt:
    exactly = ResponseLimits(min_response_tokens=tokens, max_response_tokens=tokens)
    return replace(prompt_of(name, [1, *range(50, 49 + prompt_tokens)]), limits=exactly)


def rows_of_steps(backbone: NotingBackbone, lengths: Sequence[int], *, slots: int) -> list[int]:
    prompts = [of_length(str(index), length) for index, length in enumerate(lengths)]
    completions = compiled(backbone, side_by_side=slots).generate(prompts, [0] * len(prompts), seed=0, step=0)
    assert [len(tokens) for tokens in tokens_of(completions)] == list(lengths)
    return backbone.rows_of_steps


def test_a_response_that_ends_leaves_its_slot_to_the_next_one_at_once(backbone: NotingBackbone) -> None:
    # The first token comes from the prompt, so a response of n tokens takes n - 1 steps: 4 for the first one, beside
    # which the others stand one after the other, 1 + 2 + 1.
    assert rows_of_steps(backbone, [5, 2, 3, 2], slots=2) == [2, 2, 2, 2]


def test_when_none_waits_a_step_costs_what_is_still_open(backbone: NotingBackbone) -> None:
    assert rows_of_steps(backbone, [2, 5, 3], slots=8) == [3, 2, 1, 1]


def test_a_response_of_one_token_takes_no_step_and_no_slot(backbone: NotingBackbone) -> None:
    assert rows_of_steps(backbone, [1, 1, 3, 1, 3], slots=2) == [2, 2]


def test_a_prompt_is_read_once_for_all_of_its_responses(backbone: NotingBackbone) -> None:
    prompts, indices = repeat_prompts([of_length("a", 2, prompt_tokens=4), of_length("b", 2, prompt_tokens=4)], 5)
    completions = compiled(backbone).generate(prompts, indices, seed=0, step=0)
    # The two prompts have the same tokens, too.
    assert backbone.prefills == [(1, 4)]
    assert len({tuple(tokens) for tokens in tokens_of(completions)}) > 5


def test_the_end_of_the_last_layer_reads_the_last_tokens_of_prompts_alone(backbone: NotingBackbone) -> None:
    rows: list[tuple[int, ...]] = []
    last = cast(Any, backbone.model.base_model).layers[-1].mlp.gate_proj
    last.register_forward_hook(lambda _, inputs, __: rows.append(tuple(inputs[0].shape[:-1])))
    prompts = [of_length(str(tokens), 2, prompt_tokens=tokens) for tokens in (2, 9, 4)]
    compiled(backbone, prefill_tokens=18).generate(prompts, [0] * 3, seed=0, step=0)
    # Buckets of two prompts and of one, then the newest tokens of all three.
    assert backbone.passes == [(2, 9), (1, 2), (3, 1)]
    assert rows == [(2,), (1,), (3, 1)]


def test_prompts_are_read_longest_first_in_buckets_within_the_budget(backbone: NotingBackbone) -> None:
    prompts = [of_length(str(tokens), 1, prompt_tokens=tokens) for tokens in (2, 9, 4, 8, 3)]
    compiled(backbone, prefill_tokens=18).generate(prompts, [0] * 5, seed=0, step=0)
    assert backbone.prefills == [(2, 9), (3, 4)]


def test_prompts_are_read_when_slots_are_free_for_them(backbone: NotingBackbone) -> None:
    prompts = [of_length(str(tokens), 3, prompt_tokens=tokens) for tokens in (5, 4, 3)]
    compiled(backbone, side_by_side=1, prefill_tokens=1).generate(prompts, [0] * 3, seed=0, step=0)
    assert backbone.passes == [(1, 5), (1, 1), (1, 1), (1, 4), (1, 1), (1, 1), (1, 3), (1, 1), (1, 1)]


def test_a_long_response_decodes_through_many_short_ones(backbone: NotingBackbone) -> None:
    prompts = [of_length("long", 50), *(of_length(str(n), 5, prompt_tokens=3 + n % 4) for n in range(24))]
    sampling = SamplingConfig(max_response_tokens=50)
    together = compiled(backbone, sampling, side_by_side=3).generate(prompts, [0] * 25, seed=0, step=0)
    alone = [compiled(backbone, sampling).generate([prompt], [0], seed=0, step=0)[0] for prompt in prompts]
    assert tokens_of(together) == tokens_of(alone)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-5, rtol=0)
