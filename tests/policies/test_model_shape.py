"""Sizes from files that are not loaded, against the loaded model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.config import LoraTuning
from policies.model_shape import adapter_parameters, model_shape, shape_of
from tests.fixtures_models import ARCHITECTURES

LLAMA: dict[str, Any] = {
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 6,
    "vocab_size": 10,
    "max_position_embeddings": 32,
}
LAYER = {
    "self_attn.q_proj": (4, 4),
    "self_attn.k_proj": (2, 4),
    "self_attn.v_proj": (2, 4),
    "self_attn.o_proj": (4, 4),
    "mlp.gate_proj": (6, 4),
    "mlp.up_proj": (6, 4),
    "mlp.down_proj": (4, 6),
}


def tensors(*, output: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,)}
    for layer in range(2):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LAYER.items()}
        shapes |= {f"model.layers.{layer}.{name}_layernorm.weight": (4,) for name in ("input", "post_attention")}
    return shapes | ({"lm_head.weight": (10, 4)} if output else {})


def test_the_sizes_of_a_llama_worked_by_hand() -> None:
    shape = shape_of(LLAMA, tensors())
    # A layer has 120 weights in its matrices and 8 in its norms; the embedding has 40, the last norm 4.
    assert shape.parameters == 2 * 128 + 44
    assert sum(linear.elements for linear in shape.linears) == 240
    assert {linear.name for linear in shape.linears} == {name.split(".")[1] for name in LAYER}
    assert (shape.query_width, shape.key_value_width, shape.is_gated, shape.output_parameters) == (4, 2, True, 0)


@pytest.mark.parametrize(
    ("settings", "parameters", "output"),
    [({}, 340, 40), ({"tie_word_embeddings": False}, 340, 40), ({"tie_word_embeddings": True}, 300, 0)],
)
def test_an_output_layer_counts_where_it_is_the_models_own(
    settings: dict[str, Any], parameters: int, output: int
) -> None:
    shape = shape_of({**LLAMA, **settings}, tensors(output=True))
    assert (shape.parameters, shape.output_parameters) == (parameters, output)


def test_a_model_of_text_and_images_is_read_by_its_text() -> None:
    assert shape_of({"text_config": LLAMA, "vision_config": {"hidden_size": 99}}, tensors()).hidden == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_files_say_what_the_loaded_model_has(
    tmp_path: Path,
    architecture: str,
    tiny_model: Callable[[str], PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    backbone = Backbone(model, tiny_tokenizer)
    assert (shape.hidden, shape.vocabulary) == (backbone.hidden_size, backbone.vocabulary_size)
    assert (shape.layers, shape.context_tokens) == (model.config.num_hidden_layers, backbone.context_tokens)
    # Every linear layer but the output layer, and no other matrix.
    backbone.adapters.add("policy", LoraTuning(rank=3), seed=0)
    expected = sum(parameter.numel() for _, parameter in backbone.adapters.parameters("policy"))
    assert sum(3 * (linear.rows + linear.columns) for linear in shape.linears) == expected
    backbone.adapters.save("policy", tmp_path / "adapter")
    assert adapter_parameters(str(tmp_path / "adapter")) == expected


def test_shards_count_together(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({f"model.{name}.weight": torch.zeros(3, 5)}, tmp_path / f"{name}.safetensors")
    (tmp_path / "config.json").write_text(str(LLAMA).replace("'", '"'))
    assert model_shape(str(tmp_path)).parameters == 30


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{}", r"model\.path='.*': config\.json has none of hidden_size, n_embd, d_model; its memory cannot be told"),
        ("{", r"model\.path='.*' cannot be loaded"),
        (None, r"model\.path='.*' cannot be loaded"),
    ],
)
def test_a_folder_that_does_not_say_its_sizes_is_refused_in_one_line(
    tmp_path: Path, config: str | None, message: str
) -> None:
    save_file({"a.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message) as caught:
        model_shape(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no safetensors file, so its size cannot be told"):
        model_shape(str(tmp_path))


def test_a_name_that_the_hub_does_not_serve_is_refused() -> None:
    with pytest.raises(ValueError, match="'nobody/no-such-model' is no folder, and the hub does not serve it"):
        model_shape("nobody/no-such-model")
