from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from transformers import Gemma2Config, GenerationConfig, LlamaConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rollout.kv_cache import PreallocatedLayer, preallocated_cache


def states(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(3, 2, tokens, 4, generator=torch.Generator().manual_seed(seed))


def test_the_model_sees_the_same_keys_and_values_as_with_the_growing_layer() -> None:
    ours, theirs = PreallocatedLayer(capacity_tokens=9), DynamicLayer()
    for seed, tokens in enumerate((5, 1, 1, 2)):
        keys, values = states(tokens, seed), states(tokens, seed + 100)
        for received, expected in zip(ours.update(keys, values), theirs.update(keys, values), strict=True):
            assert torch.equal(received, expected)
        assert ours.get_seq_length() == theirs.get_seq_length()
        assert ours.get_mask_sizes(1) == theirs.get_mask_sizes(1)


def test_memory_is_claimed_once_and_written_in_place() -> None:
    layer = PreallocatedLayer(capacity_tokens=8)
    addresses = {layer.update(states(2, step), states(2, step))[0].data_ptr() for step in range(4)}
    assert len(addresses) == 1


def test_more_tokens_than_the_capacity_are_refused() -> None:
    layer = PreallocatedLayer(capacity_tokens=3)
    layer.update(states(3, 0), states(3, 1))
    with pytest.raises(AssertionError, match="3 tokens"):
        layer.update(states(1, 2), states(1, 3))


def test_only_layers_that_grow_without_bound_are_replaced() -> None:
    llama = preallocated_cache(LlamaConfig(num_hidden_layers=2), 8)
    assert [type(layer) for layer in llama.layers] == [PreallocatedLayer, PreallocatedLayer]
    gemma = preallocated_cache(Gemma2Config(num_hidden_layers=2, sliding_window=4), 8)
    assert {type(layer) for layer in gemma.layers} == {PreallocatedLayer, DynamicSlidingWindowLayer}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_generate_gives_the_same_tokens_as_with_its_own_cache(
    tiny_model: Callable[[str], PreTrainedModel], architecture: str
) -> None:
    model = tiny_model(architecture)
    request = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
        "generation_config": GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0),
    }
    generate = cast(Any, model).generate  # untyped on PreTrainedModel
    expected = generate(**request)
    received = generate(**request, past_key_values=preallocated_cache(model.config, 16))
    assert torch.equal(received, expected)
