"""What only the engine in slots must do; `test_engine_contract` has what all engines must."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.config import AdapterTuning, BottleneckTuning, Ia3Tuning, LoraTuning
from rollout.compiled_engine import CompiledGenerator
from rollout.config import CompiledEngineConfig, HfEngineConfig, SamplingConfig
from rollout.engines import build_generator
from rollout.hf_engine import HfGenerator
from tests.rollout.engine_cases import SAMPLING, add_policy, assert_same, compiled, hf, sample, traced
from tests.tiny_models import randomize

TOKENS = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
UNSUPPORTED: dict[str, dict[str, Any]] = {
    # A state instead of keys and values.
    "mamba": {"hidden_size": 32, "num_hidden_layers": 1},
    # Its local attention counts from the last column of the cache, written or not.
    "gpt_neo": {
        "hidden_size": 32,
        "num_layers": 2,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": 64,
    },
}


@pytest.fixture
def backbone(tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase) -> Backbone:
    return Backbone(tiny_model("llama"), tiny_tokenizer)


def unsupported(architecture: str, tokenizer: PreTrainedTokenizerBase) -> Backbone:
    config = AutoConfig.for_model(architecture, **TOKENS, **UNSUPPORTED[architecture])
    return Backbone(AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer)


@pytest.mark.parametrize("slots", [1, 2, 5, 13])
def test_the_number_of_slots_and_the_size_of_buckets_change_no_sample(backbone: Backbone, slots: int) -> None:
    expected = sample(hf(backbone))
    assert_same(sample(compiled(backbone, side_by_side=slots, prefill_tokens=1)), expected)
    assert_same(sample(compiled(backbone, side_by_side=slots, prefill_tokens=17)), expected)


def test_weights_that_the_learner_writes_in_place_are_sampled_from_at_once(backbone: Backbone) -> None:
    generator = compiled(backbone)
    before = sample(generator)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.mul_(0.9)
    after = sample(generator)
    assert_same(after, sample(hf(backbone)))
    assert any(one.token_ids.tolist() != other.token_ids.tolist() for one, other in zip(before, after, strict=True))


def wide_backbone(tokenizer: PreTrainedTokenizerBase) -> Backbone:
    """Of a Llama whose layers are large enough to be packed."""
    wide = AutoConfig.for_model(
        "llama", **TOKENS, hidden_size=512, intermediate_size=512, num_hidden_layers=1, num_attention_heads=8
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Backbone(AutoModelForCausalLM.from_config(wide, dtype=torch.float32), tokenizer)


def test_packed_weights_are_those_of_the_merged_adapter(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    backbone = wide_backbone(tiny_tokenizer)
    add_policy(backbone, seed=1)
    expected = sample(hf(backbone, adapter="policy", merge=False))
    assert_same(sample(compiled(backbone, adapter="policy")), expected)
    assert_same(sample(compiled(backbone, adapter="policy", merge=False)), expected)
    assert_same(sample(traced(backbone, adapter="policy", merge=False)), expected)


@pytest.mark.parametrize("tuning", [LoraTuning(rank=2, variant="dora"), Ia3Tuning(), BottleneckTuning()])
def test_methods_that_may_read_the_base_weights_find_them(
    tiny_tokenizer: PreTrainedTokenizerBase, tuning: AdapterTuning
) -> None:
    backbone = wide_backbone(tiny_tokenizer)
    backbone.adapters.add("policy", tuning, seed=0)
    randomize(backbone.adapters, "policy", seed=1)
    expected = sample(hf(backbone, adapter="policy"))
    assert_same(sample(compiled(backbone, adapter="policy")), expected)
    assert_same(sample(traced(backbone, adapter="policy")), expected)


@pytest.mark.parametrize("architecture", UNSUPPORTED)
def test_a_model_that_cannot_be_decoded_in_slots_is_refused_and_gets_the_other_engine_by_default(
    tiny_tokenizer: PreTrainedTokenizerBase, architecture: str
) -> None:
    backbone = unsupported(architecture, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"kind=compiled: \w+ForCausalLM cannot be .* set rollout.engine.kind=hf"):
        compiled(backbone)
    assert isinstance(build_generator(backbone, None, SAMPLING), HfGenerator)


def test_the_configuration_names_the_engine(backbone: Backbone) -> None:
    assert isinstance(build_generator(backbone, None, SAMPLING, HfEngineConfig()), HfGenerator)
    assert isinstance(build_generator(backbone, None, SAMPLING, CompiledEngineConfig()), CompiledGenerator)
    built = build_generator(backbone, None, SamplingConfig(), version=3)
    assert isinstance(built, CompiledGenerator)
    assert built.version == 3
