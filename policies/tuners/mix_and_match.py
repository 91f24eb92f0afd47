"""Mix-and-match: a short prefix in attention and parallel adapters beside feed-forward (He et al. 2022, section 4.6).

Owns the combination, registered as the PEFT method `mix_and_match`. The prefix of a decoder layer lies on the layer of
its feed-forward adapter; how a prefix enters a model is `policies.virtual_prefix`'s. Keys and values of the prefix
train themselves, without the network of Li and Liang (2021).
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig
from torch import nn
from transformers import PreTrainedModel

from policies.tuners.bottleneck import BottleneckConfig, BottleneckLayer
from policies.tuners.layers import OwnTuner
from policies.tuners.registration import peft_type, register
from policies.virtual_prefix import BodyPrefix, PrefixStates

_INITIAL_STD = 0.02


@dataclass
class MixAndMatchConfig(BottleneckConfig):
    """PEFT's view of the method."""

    num_virtual_tokens: int = field(default=10, metadata={"help": "Length of the prefix."})
    num_key_value_heads: int | None = field(default=None, metadata={"help": "Heads of keys and values."})
    head_dim: int | None = field(default=None, metadata={"help": "Size of a head."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type, self.is_parallel = peft_type("mix_and_match"), True


class MixAndMatchLayer(BottleneckLayer):
    """A parallel adapter, and keys and values of the prefix of the decoder layer that it stands in."""

    adapter_layer_names = (*BottleneckLayer.adapter_layer_names, "mix_and_match_prefix")

    def open_containers(self) -> None:
        """See `OwnTunerLayer`."""
        super().open_containers()
        self.mix_and_match_prefix = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """See `OwnTunerLayer`; the prefix is (2, heads, virtual tokens, head size), drawn from N(0, 0.02^2)."""
        shape = (2, config.num_key_value_heads, config.num_virtual_tokens, config.head_dim)
        prefix = nn.Parameter((_INITIAL_STD * torch.randn(shape)).to(self.base_device))
        self.mix_and_match_prefix[adapter_name] = prefix
        super().update_layer(adapter_name, config)


class MixAndMatchModel(OwnTuner):
    """PEFT's model of the method."""

    prefix = "mix_and_match_"
    tuner_layer_cls = MixAndMatchLayer

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        config = cast(MixAndMatchConfig, super()._prepare_adapter_config(peft_config, model_config))
        text = cast(PreTrainedModel, self.model).config.get_text_config(decoder=True)
        heads = text.num_attention_heads
        config.num_key_value_heads = getattr(text, "num_key_value_heads", None) or heads
        config.head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
        return config

    def _post_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._post_injection_hook(model, config, adapter_name)
        BodyPrefix.of(cast(PreTrainedModel, model)).add_source(self._prefix_states)

    def _prefix_states(self) -> PrefixStates | None:
        model = cast(PreTrainedModel, self.model)
        layers = [layer for layer in model.modules() if isinstance(layer, MixAndMatchLayer)]
        names = layers[0].active_among(layers[0].mix_and_match_prefix)
        if not names:
            return None
        prefixes = [layer.mix_and_match_prefix[names[-1]].to(model.dtype) for layer in layers]
        return [(prefix[0].unsqueeze(0), prefix[1].unsqueeze(0)) for prefix in prefixes]


register("mix_and_match", MixAndMatchConfig, MixAndMatchModel)
