"""The planned size of an adapter is the size that it then has, for every method."""

from pathlib import Path

import pytest

from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from policies.model_shape import model_shape, shape_of
from rlhf.adapter_sizes import adapter_elements
from tests.policies.test_model_shape import LLAMA, tensors
from tests.tunings import TUNINGS


@pytest.mark.parametrize("name", sorted(TUNINGS))
def test_a_new_adapter_trains_as_many_numbers_as_planned(tiny_llama_folder: Path, name: str) -> None:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder)))
    backbone.adapters.add("policy", TUNINGS[name], seed=0)
    trained = sum(parameter.numel() for _, parameter in backbone.adapters.trainable("policy"))
    assert adapter_elements(model_shape(str(tiny_llama_folder)), TUNINGS[name]) == trained


def test_lora_is_rank_times_both_widths_of_every_adapted_layer() -> None:
    # Per layer 3 * (8 + 6 + 6 + 8 + 10 + 10 + 10).
    shape = shape_of(LLAMA, tensors())
    assert adapter_elements(shape, LoraTuning(rank=3)) == 2 * 3 * 58
    assert adapter_elements(shape, LoraTuning(rank=3, target_modules=("q_proj", "up_proj"))) == 2 * 3 * 18
    assert adapter_elements(shape, LoraTuning(rank=3, layers=(1,))) == 3 * 58
