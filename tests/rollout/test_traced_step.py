"""When a step is traced, that it is the model's own bit for bit, and which models are left to their own code."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from rollout import compiled_engine, lanes
from rollout.compiled_engine import STEPS_BEFORE_TRACE, CompiledGenerator
from rollout.config import SamplingConfig
from rollout.decode_attention import decode_attention
from rollout.packed_linear import packed_linears
from rollout.traced_step import TracedStep, traced_step
from tests.rollout.engine_cases import SAMPLING, add_policy, assert_same, compiled, hf, sample, traced

ModelOf = Callable[[str], PreTrainedModel]


def trace_of(backbone: Backbone) -> TracedStep | None:
    with torch.inference_mode(), packed_linears(backbone.model) as packed, decode_attention(backbone.model):
        return traced_step(backbone, packed)


def is_traced(generator: CompiledGenerator) -> bool:
    return generator._traced is not None


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gpt_neox", "gemma2", "mistral"])
def test_the_architectures_that_are_tested_elsewhere_have_a_trace(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase, architecture: str
) -> None:
    assert trace_of(Backbone(tiny_model(architecture), tiny_tokenizer)) is not None


@pytest.mark.parametrize(("architecture", "dtype"), [("llama", torch.bfloat16), ("gemma2", torch.float32)])
def test_a_traced_rollout_is_the_plain_one_bit_for_bit(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase, architecture: str, dtype: torch.dtype
) -> None:
    backbone = Backbone(cast(Any, tiny_model(architecture)).to(dtype), tiny_tokenizer)
    add_policy(backbone, seed=1)
    generator = traced(backbone, adapter="policy", side_by_side=5)
    for one, other in zip(sample(generator), sample(compiled(backbone, adapter="policy", side_by_side=5)), strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
    assert is_traced(generator)


def test_a_step_is_traced_once_it_has_been_needed_often(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    generator = compiled(Backbone(tiny_model("llama"), tiny_tokenizer))
    length = len(max(sample(generator), key=lambda completion: len(completion.token_ids)).token_ids)
    calls = 1
    while not is_traced(generator):
        assert calls * length < STEPS_BEFORE_TRACE + length
        sample(generator)
        calls += 1
    assert (calls - 1) * length >= STEPS_BEFORE_TRACE > (calls - 2) * length


def test_a_trace_follows_weights_that_are_written_in_place(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer)
    generator = traced(backbone)
    sample(generator)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.mul_(0.9)
    assert_same(sample(generator), sample(hf(backbone)))
    assert is_traced(generator)


def test_another_adapter_on_the_model_ends_the_trace(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer)
    generator = traced(backbone)
    sample(generator)
    assert is_traced(generator)
    add_policy(backbone, seed=1)
    assert_same(sample(generator), sample(hf(backbone)))
    assert not is_traced(generator)


@pytest.mark.parametrize("count", [lambda states: int(states.shape[0]), lambda states: states.abs().max().item()])
def test_a_model_that_asks_for_what_a_trace_cannot_know_keeps_its_own_code(
    tiny_model: ModelOf,
    tiny_tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    count: Callable[[Tensor], Any],
) -> None:
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer)
    layer = cast(Any, backbone.model.base_model).layers[0]
    own = layer.mlp.forward
    monkeypatch.setattr(layer.mlp, "forward", lambda states: own(states) * (1 + 0.1 * count(states)))
    assert trace_of(backbone) is None


def test_a_model_without_a_trace_is_tried_once(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Backbone] = []
    monkeypatch.setattr(compiled_engine, "traced_step", lambda backbone, _: tries.append(backbone))
    generator = traced(Backbone(tiny_model("llama"), tiny_tokenizer), SamplingConfig(max_response_tokens=40))
    for _ in range(4):
        sample(generator, responses=1)
    assert len(tries) == 1


def test_lanes_share_a_trace(
    tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "ROWS_PER_LANE", 4)
    monkeypatch.setattr(lanes, "PRODUCTS_PER_LANE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    backbone = Backbone(tiny_model("qwen3"), tiny_tokenizer)
    generator = traced(backbone, side_by_side=12)
    assert lanes.lane_count(backbone.model, 12) == 3
    first, again = sample(generator, responses=4), sample(generator, responses=4)
    assert is_traced(generator)
    assert_same(first, sample(hf(backbone), responses=4))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.logprobs, other.logprobs)


def test_off_the_cpu_there_is_no_trace(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_model: ModelOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer)
    monkeypatch.setattr(backbone, "device", torch.device("meta"))
    assert traced_step(backbone, []) is None


def test_tracing_leaves_the_model_as_it_was(tiny_model: ModelOf, tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer)
    before = {name: id(parameter) for name, parameter in backbone.model.named_parameters()}
    sample(traced(backbone, SamplingConfig(max_response_tokens=2)))
    assert {name: id(parameter) for name, parameter in backbone.model.named_parameters()} == before
    assert sample(compiled(backbone, SAMPLING))
