"""The counts of the plan are those of adapters that are really built."""

from pathlib import Path

import pytest

from policies.config import FullTuning, LoraTuning, ModelConfig
from policies.loading import load_backbone
from policies.model_shape import adapter_parameters, model_shape
from rlhf.planning.adapter_sizes import adapter_elements, frozen_elements, merged_elements
from tests.tunings import TUNINGS


@pytest.mark.parametrize("name", sorted(TUNINGS))
def test_the_plan_counts_what_trains(name: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    adapters = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu")).adapters
    adapters.add("policy", TUNINGS[name], seed=0)
    trained = sum(parameter.numel() for _, parameter in adapters.trainable("policy"))
    shape = model_shape(str(tiny_llama_folder))

    assert adapter_elements(shape, TUNINGS[name]) == trained
    frozen = sum(parameter.numel() for _, parameter in adapters.parameters("policy")) - trained
    assert frozen_elements(shape, TUNINGS[name]) == frozen
    adapters.save("policy", tmp_path)
    if name not in ("prefix", "p_tuning_mlp", "p_tuning_lstm"):  # Of a network only its result is kept.
        assert adapter_parameters(str(tmp_path)) == trained + frozen


def test_adapters_on_some_layers_are_as_many_parts_of_the_whole(tiny_llama_folder: Path) -> None:
    shape = model_shape(str(tiny_llama_folder))
    assert 2 * adapter_elements(shape, LoraTuning(layers=(1,))) == adapter_elements(shape, LoraTuning())
    assert 2 * merged_elements(shape, LoraTuning(layers=(1,))) == merged_elements(shape, LoraTuning())
    assert merged_elements(shape, LoraTuning(variant="dora")) == adapter_elements(shape, FullTuning()) == 0
    # The folder's embedding is its output layer, too.
    assert merged_elements(shape, LoraTuning(embeddings=True)) == 0
