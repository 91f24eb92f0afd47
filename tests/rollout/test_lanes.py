"""How responses are dealt to threads, and that nobody can tell from the samples."""

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from rollout import lanes
from rollout.lanes import deal, lane_count, run_lanes
from rollout.responses import OpenResponse, ResponseRules
from tests.rollout.engine_cases import SAMPLING, add_policy, assert_same, compiled, hf, sample
from tests.rollout.fakes import prompt_of

RULES = ResponseRules(min_tokens=0, max_tokens=1, stop_ids=())


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def responses(*prompt_lengths: int) -> list[OpenResponse]:
    """Those of one length answer the same prompt."""
    prompts = [prompt_of(str(length), [5] * length) for length in prompt_lengths]
    return [OpenResponse(prompt, index, RULES, np.zeros(1)) for index, prompt in enumerate(prompts)]


def gpt2(hidden_size: int) -> PreTrainedModel:
    """One layer of 12 * hidden_size**2 weights in matrices, and some more."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=hidden_size, n_layer=1, n_head=2))


def indices(shares: Sequence[Sequence[OpenResponse]]) -> list[list[int]]:
    return [[response.response_index for response in share] for share in shares]


def test_long_prompts_are_dealt_out_first_so_that_lanes_have_alike_work() -> None:
    assert indices(deal(responses(3, 9, 4, 8, 7), 2)) == [[1, 4, 0], [3, 2]]


def test_responses_to_one_prompt_stay_in_one_lane_which_reads_it_once() -> None:
    assert indices(deal(responses(2, 2, 2, 9, 8, 7), 2)) == [[3, 5], [4, 0, 1, 2]]


def test_a_lane_without_a_share_is_left_out() -> None:
    assert indices(deal(responses(2, 2, 2), 3)) == [[0, 1, 2]]
    assert deal([], 2) == []


@pytest.mark.parametrize(
    ("hidden_size", "rows", "expected"),
    # 3.1M weights in the layer: 32 rows are enough. 198,528 weights: it takes 2**23 / 198,528 = 42.3 rows.
    [(512, 0, 1), (512, 63, 1), (512, 64, 2), (512, 100, 3), (512, 1000, 4), (128, 85, 1), (128, 86, 2)],
)
def test_there_are_as_many_lanes_as_threads_if_each_has_work_enough(hidden_size: int, rows: int, expected: int) -> None:
    assert lane_count(gpt2(hidden_size), rows) == expected


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", {"full_attention": "longrope"}])
def test_frequencies_that_follow_the_longest_row_allow_one_lane(rope_type: object) -> None:
    model = gpt2(512)
    rotary = nn.Module()
    rotary.__dict__["rope_type"] = rope_type
    model.add_module("rotary", rotary)
    assert lane_count(model, 1000) == 1


def test_off_the_cpu_there_is_one_lane() -> None:
    with torch.device("meta"):
        assert lane_count(gpt2(512), 1000) == 1


@pytest.mark.parametrize(("lanes_", "expected"), [(1, [4]), (2, [2, 2]), (3, [1, 1, 2]), (5, [1, 1, 1, 1, 1])])
def test_threads_are_divided_among_the_lanes_and_given_back(lanes_: int, expected: list[int]) -> None:
    seen: dict[int, int] = {}
    barrier = threading.Barrier(lanes_)  # all lanes at once

    def decode(share: list[OpenResponse]) -> None:
        barrier.wait(timeout=10)
        seen[share[0].response_index] = torch.get_num_threads()

    run_lanes(decode, [[response] for response in responses(*range(1, lanes_ + 1))])

    assert [seen[lane] for lane in range(lanes_)] == expected
    assert torch.get_num_threads() == 4


def test_an_error_of_one_lane_is_raised_and_the_threads_are_given_back() -> None:
    def decode(share: list[OpenResponse]) -> None:
        if share[0].response_index == 1:
            raise KeyError("lane 1")

    with pytest.raises(KeyError, match="lane 1"):
        run_lanes(decode, [[response] for response in responses(1, 2, 3)])
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_samples_do_not_depend_on_lanes_and_are_the_same_each_time(
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    monkeypatch.setattr(lanes, "ROWS_PER_LANE", 3)
    monkeypatch.setattr(lanes, "PRODUCTS_PER_LANE", 1)
    backbone = Backbone(tiny_model(architecture), tiny_tokenizer)
    add_policy(backbone, seed=1)
    engine = compiled(backbone, SAMPLING, adapter="policy", side_by_side=12)
    assert lane_count(backbone.model, 12) == 4
    first, again = sample(engine, responses=5), sample(engine, responses=5)
    assert_same(first, sample(hf(backbone, SAMPLING, adapter="policy"), responses=5))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
