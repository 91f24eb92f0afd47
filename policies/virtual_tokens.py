"""Adapters that are nothing but virtual tokens: prefix tuning, P-tuning v2, prompt tuning, P-tuning.

Owns PEFT's encoders by adapter name, and what they say: keys and values of the virtual tokens in every layer. PEFT
keeps what an encoder computes and not the encoder, so an adapter that comes from a folder goes on training its virtual
tokens themselves. How they enter a pass is `policies.virtual_prefix`.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftType, PrefixTuningConfig
from peft.config import PromptLearningConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.other import _prepare_prompt_learning_config
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from policies.virtual_prefix import BodyPrefix, PrefixStates, require_prefix_support

EMBEDDINGS = "prompt_embeddings"
"""The one tensor that PEFT keeps of such an adapter."""
_ENCODER = "prompt_encoder."


@dataclass(frozen=True, slots=True)
class _Encoder:
    """An adapter: PEFT's module, and whether its embedding is the result, without a network behind it."""

    config: PromptLearningConfig
    module: nn.Module
    is_direct: bool

    def embeddings(self) -> Tensor:
        """(n, D) embeddings, or (n, 2 layers heads d) keys and values under prefix tuning."""
        weight = cast(Tensor, cast(nn.Embedding, self.module.embedding).weight)
        if self.is_direct:
            return weight
        return self.module(torch.arange(len(weight), device=weight.device).unsqueeze(0))[0]


class VirtualTokens:
    """The adapters of this sort on one model. They stand beside the model, none of their parameters is one of it.

    Attributes:
        active: Name of the one that is in force; None without any.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._encoders: dict[str, _Encoder] = {}
        self.active: str | None = None

    def __contains__(self, name: object) -> bool:
        return name in self._encoders

    def add(self, name: str, config: PromptLearningConfig, *, initial_ids: list[int] | None = None) -> None:
        """Adds an adapter with the random start of PEFT, or with the embeddings of tokens.

        Args:
            name: Its name.
            config: Its method; sizes that it leaves open are filled in from the model.
            initial_ids: Tokens whose embeddings prompt tuning starts from, repeated or cut to the virtual tokens.

        Raises:
            ValueError: the architecture cannot have virtual tokens.
        """
        method = PeftType(cast(str, config.peft_type))
        require_prefix_support(self._model, str(method.value).lower(), config.num_virtual_tokens)
        config.num_transformer_submodules = 1
        _prepare_prompt_learning_config(config, self._model.config)
        make: Any = PEFT_TYPE_TO_TUNER_MAPPING[method]
        words = cast(nn.Embedding, self._model.get_input_embeddings())
        takes_words = method == PeftType.PROMPT_TUNING
        module = make(config, words) if takes_words else make(config)
        has_network = method == PeftType.P_TUNING or getattr(config, "prefix_projection", False)
        if initial_ids is not None:
            module.embedding.weight.data = _embeddings_of(initial_ids, words, config.num_virtual_tokens)
        module = module.to(self._model.device, torch.float32).requires_grad_(requires_grad=False)
        if not self._encoders:
            BodyPrefix.of(self._model).add_source(self._states)
        self._encoders[name] = _Encoder(config, module, is_direct=config.inference_mode or not has_network)

    def parameters(self, name: str) -> list[tuple[str, Parameter]]:
        """What trains of an adapter: its virtual tokens, or the network that computes them."""
        encoder = self._encoders[name]
        if encoder.is_direct:
            return [(EMBEDDINGS, cast(Parameter, cast(nn.Embedding, encoder.module.embedding).weight))]
        return [(_ENCODER + path, parameter) for path, parameter in encoder.module.named_parameters()]

    def saved(self, name: str) -> dict[str, Tensor]:
        """What PEFT keeps of an adapter."""
        return {EMBEDDINGS: self._encoders[name].embeddings().detach()}

    def _states(self) -> PrefixStates | None:
        if self.active is None:
            return None
        encoder = self._encoders[self.active]
        learned = encoder.embeddings().to(self._model.dtype)
        if isinstance(encoder.config, PrefixTuningConfig):
            return _keys_and_values(learned, encoder.config)
        return self._read(learned)

    def _read(self, embeddings: Tensor) -> PrefixStates:
        """What the frozen model makes of embeddings, (n, D)."""
        cache = DynamicCache()
        # `forward` itself, because a call would ask for the virtual tokens before these.
        self._model.base_model.forward(inputs_embeds=embeddings.unsqueeze(0), past_key_values=cache, use_cache=True)
        layers = cast(list[DynamicLayer], cache.layers)
        return [(cast(Tensor, layer.keys), cast(Tensor, layer.values)) for layer in layers]


def _keys_and_values(learned: Tensor, config: PromptLearningConfig) -> PrefixStates:
    """(n, 2 layers heads d), laid out as PEFT does: of each layer the keys, then the values."""
    layers, heads = cast(int, config.num_layers), cast(int, config.num_attention_heads)
    by_layer = learned.view(len(learned), layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    return [(keys.unsqueeze(0), values.unsqueeze(0)) for keys, values in by_layer]


def _embeddings_of(ids: list[int], words: nn.Embedding, count: int) -> Tensor:
    repeated = (ids * -(-count // len(ids)))[:count]
    return words(torch.tensor(repeated, device=words.weight.device)).detach().float()
