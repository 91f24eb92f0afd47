"""Cut models: nothing removed is the same to the last bit; what stays is what it was, chosen by magnitude."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from policies.config import ArchitectureConfig
from policies.loading import random_backbone
from policies.shrinking import every_nth, with_layers, with_width

ModelOf = Callable[[str], PreTrainedModel]
IDS = torch.tensor([[5, 9, 30, 2, 77, 140]])


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gpt_neox", "gemma2"])
def test_all_layers_kept_is_the_original_bit_by_bit(tiny_model: ModelOf, architecture: str) -> None:
    model = tiny_model(architecture)
    assert torch.equal(logits(with_layers(model, [0, 1])), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
def test_all_heads_and_neurons_kept_is_the_original_bit_by_bit(tiny_model: ModelOf, architecture: str) -> None:
    model = tiny_model(architecture)
    assert torch.equal(logits(with_width(model, key_value_groups=2, intermediate_size=48)), logits(model))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_a_kept_layer_has_its_weights_and_the_others_are_gone(
    tiny_model: ModelOf, architecture: str, tmp_path: Path
) -> None:
    model = tiny_model(architecture)
    small = with_layers(model, [1])
    assert small.config.get_text_config().num_hidden_layers == 1
    swapped = with_layers(with_layers(model, [1, 0]), [0])
    assert torch.equal(logits(small), logits(swapped))
    assert not torch.equal(logits(small), logits(with_layers(model, [0])))
    small.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(small))


def test_a_cut_model_decodes_with_a_cache_as_without(tiny_model: ModelOf) -> None:
    small: Any = with_width(with_layers(tiny_model("llama"), [1]), key_value_groups=1, intermediate_size=20)
    first = small(input_ids=IDS[:, :4], use_cache=True)
    rest = small(input_ids=IDS[:, 4:], past_key_values=first.past_key_values).logits
    assert torch.allclose(rest, logits(small)[:, 4:], atol=1e-5)


def test_neurons_without_weight_go_first_and_take_nothing_along(tiny_model: ModelOf) -> None:
    model = tiny_model("llama")
    dead = [3, 7, 40]
    with torch.no_grad():
        for layer in model.get_submodule("model.layers"):  # pyright: ignore[reportGeneralTypeIssues]
            layer.mlp.gate_proj.weight[dead] = layer.mlp.up_proj.weight[dead] = 0.0
            layer.mlp.down_proj.weight[:, dead] = 0.0
    small = with_width(model, intermediate_size=45)
    assert small.config.intermediate_size == 45  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(logits(small), logits(model), atol=1e-5)
    kept = [index for index in range(48) if index not in dead]
    weight = model.get_submodule("model.layers.1.mlp.down_proj").weight
    assert torch.equal(small.get_submodule("model.layers.1.mlp.down_proj").weight, weight[:, kept])  # pyright: ignore


def test_groups_without_weight_go_first_and_take_nothing_along(tiny_model: ModelOf) -> None:
    model = tiny_model("llama")  # Four heads of eight, two to a group.
    with torch.no_grad():
        for index, layer in enumerate(model.get_submodule("model.layers")):  # pyright: ignore
            dead = index  # Another group in each layer.
            layer.self_attn.k_proj.weight[8 * dead : 8 * dead + 8] = 0.0
            layer.self_attn.v_proj.weight[8 * dead : 8 * dead + 8] = 0.0
            layer.self_attn.q_proj.weight[16 * dead : 16 * dead + 16] *= 1e-3
            layer.self_attn.o_proj.weight[:, 16 * dead : 16 * dead + 16] *= 1e-3
    small = with_width(model, key_value_groups=1)
    assert small.config.num_attention_heads == 2  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.allclose(logits(small), logits(model), atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) == sum(p.numel() for p in model.parameters()) - 2 * (
        32 * 16 * 2 + 32 * 8 * 2
    )


def test_every_nth_layer_starts_at_the_first() -> None:
    assert every_nth(7, 3) == [0, 3, 6]


@pytest.mark.parametrize(
    ("cut", "problem"),
    [
        (lambda model: with_layers(model, [0, 2]), "layers=[0, 2]: name different layers of 0 to 1"),
        (lambda model: with_layers(model, []), "at least one"),
        (lambda model: with_layers(model, [1, 1]), "name different layers"),
        (lambda model: with_width(model, key_value_groups=3), "key_value_groups=3: the model has 2"),
        (lambda model: with_width(model, intermediate_size=49), "intermediate_size=49: the model has 48"),
    ],
)
def test_a_cut_of_what_is_not_there_is_refused(tiny_model: ModelOf, cut: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r"layers|groups|size") as caught:
        cut(tiny_model("llama"))
    assert problem in str(caught.value)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox"])
def test_an_architecture_with_other_projections_keeps_its_width(tiny_model: ModelOf, architecture: str) -> None:
    with pytest.raises(ValueError, match="projections of Llama only"):
        with_width(tiny_model(architecture), key_value_groups=1)


def test_heads_that_transformers_could_not_load_again_are_refused(tiny_tokenizer: Any) -> None:
    architecture = ArchitectureConfig(hidden_size=32, layers=1, heads=4, context_tokens=16)
    model = random_backbone(architecture, tiny_tokenizer, seed=0).model
    with pytest.raises(ValueError, match=r"hidden size \(32\) is not a multiple of .* heads \(3\)"):
        with_width(model, key_value_groups=3)
