"""What only the engine on `generate` must do; `test_engine_contract` has what all engines must."""

from collections.abc import Callable
from typing import cast

import pytest
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from tests.rollout.engine_cases import assert_same, hf, sample


@pytest.fixture
def backbone(tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase) -> Backbone:
    return Backbone(tiny_model("llama"), tiny_tokenizer)


def test_the_models_own_generation_settings_change_nothing_and_come_back(backbone: Backbone) -> None:
    expected = sample(hf(backbone))
    own = backbone.model.generation_config
    own.update(repetition_penalty=5.0, suppress_tokens=[30, 31, 32], top_k=1, min_new_tokens=12, num_beams=3)
    assert_same(sample(hf(backbone)), expected)
    assert backbone.model.generation_config is own


def test_the_output_layer_is_never_given_a_slice(backbone: Backbone) -> None:
    """Of one, `F.linear` would copy the output weight once for each row."""
    seen: list[bool] = []

    def record(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        seen.append(inputs[0].is_contiguous())

    hook = cast(nn.Module, backbone.model.get_output_embeddings()).register_forward_hook(record)
    sample(hf(backbone))
    hook.remove()
    assert seen
    assert all(seen)
