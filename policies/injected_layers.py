"""Adapters that PEFT injects as layers: into which modules, which of them are on, and their parameters by name.

Owns PEFT's tuner of one model and the switch. A model carries one method at a time, because PEFT's layers of different
methods do not share a module.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, cast_adapter_dtype
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from policies.lora_linear import use_fast_products

_PEFT_PREFIX = "base_model.model."
_MAGNITUDE = "lora_magnitude_vector"


class InjectedLayers:
    """The adapter layers of one model.

    Args:
        model: The model; its modules are replaced by layers that wrap them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._tuner: BaseTuner | None = None
        self._kinds: dict[str, str] = {}
        self._layers: list[tuple[str, BaseTunerLayer]] = []
        self._parameters: dict[str, list[tuple[str, Parameter]]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._kinds

    def inject(self, name: str, config: PeftConfig) -> None:
        """Puts an adapter into the model, frozen, without changing what else trains. `switch` has to follow.

        Raises:
            ValueError: the model carries another method, or no module fits.
        """
        method = PeftType(cast(str, config.peft_type))
        kind = str(method.value)
        self._require_same_kind(name, kind)
        trains = {id(parameter) for parameter in self._model.parameters() if parameter.requires_grad}
        try:
            with warnings.catch_warnings():
                # An embedding that is the output layer, too, is adapted at the input alone, and never merged.
                warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`", category=UserWarning)
                self._build(method, name, config)
        except ValueError as error:
            targets = cast(Any, config).target_modules
            raise ValueError(f"model.tuning.target_modules={targets!r}: {str(error).splitlines()[0]}") from error
        cast_adapter_dtype(self._model, name)  # To float32, whatever the precision of the base.
        for parameter in self._model.parameters():
            parameter.requires_grad = id(parameter) in trains
        self._kinds[name] = kind
        self._layers = injected_layers(self._model)
        for _, layer in self._layers:
            if isinstance(layer, LoraLayer):
                use_fast_products(layer)
        self._parameters[name] = [
            entry for path, layer in self._layers for entry in _named_parameters(path, layer, name)
        ]

    def of(self, name: str) -> list[tuple[str, BaseTunerLayer]]:
        """The layers that carry an adapter, by their path."""
        return [(path, layer) for path, layer in self._layers if name in layer._get_available_adapters()]

    def parameters(self, name: str) -> list[tuple[str, Parameter]]:
        """Parameters of one adapter under the names PEFT saves them by."""
        return list(self._parameters[name])

    def scalings(self, name: str) -> dict[str, float]:
        """Factor of what an adapter adds, by the path of each layer that has one."""
        return {
            path: float(scaling[name])
            for path, layer in self.of(name)
            if (scaling := getattr(layer, "scaling", None)) is not None
        }

    def switch(self, names: Sequence[str]) -> None:
        """Sets the two attributes that PEFT's layers read in their forward pass; no names turn all adapters off.

        PEFT's own `set_adapter` and `disable_adapter` walk all modules and reset `requires_grad` on every switch: 10
        to 40 ms, and trainable parameters would be frozen behind the caller's back. They write the same two
        attributes (peft 0.21, `BaseTunerLayer.set_adapter` and `enable_adapters`); remove this when PEFT can switch
        without touching gradients.
        """
        # Past nn.Module.__setattr__, which looks for parameters and submodules first and costs more than the rest of
        # the switch.
        for _, layer in self._layers:
            object.__setattr__(layer, "_disable_adapters", not names)
            if names:
                object.__setattr__(layer, "_active_adapter", list(names))

    def add_to_base(self, names: Sequence[str]) -> list[tuple[Parameter, Tensor]]:
        """Adds LoRA adapters to a copy of each base weight; returns the weights with their originals."""
        originals: list[tuple[Parameter, Tensor]] = []
        for _, layer in self.of(names[0]):
            weight = cast(Parameter, layer.get_base_layer().weight)
            originals.append((weight, weight.data))
            delta = sum(cast(Any, layer).get_delta_weight(name).float() for name in names)
            weight.data = (weight.data.float() + cast(Tensor, delta)).to(weight.dtype)
        return originals

    def _build(self, method: PeftType, name: str, config: PeftConfig) -> None:
        if self._tuner is None:
            self._tuner = PEFT_TYPE_TO_TUNER_MAPPING[method](self._model, {name: config}, name)
        else:
            self._tuner.peft_config[name] = config
            self._tuner.inject_adapter(self._model, name)

    def _require_same_kind(self, name: str, kind: str) -> None:
        for other, own in self._kinds.items():
            if own != kind:
                raise ValueError(
                    f"adapter {name!r} is of type {kind}, but the model carries {other!r} of type {own}, and PEFT's "
                    "layers of two methods do not share a model: use one model.tuning.kind for both, or a model each"
                )


def injected_layers(model: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """The adapter layers of a model by their path."""
    return [(path, layer) for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]


def base_modules(model: PreTrainedModel) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model as if no adapter layer were there, by their path."""
    wrappers = [path for path, _ in injected_layers(model)]
    for path, module in model.named_modules():
        inside = (path[len(wrapper) + 1 :] for wrapper in wrappers if f"{path}.".startswith(f"{wrapper}."))
        if all(part.partition(".")[0] == "base_layer" for part in inside):
            yield path.replace(".base_layer", ""), module


def matching_paths(model: PreTrainedModel, ends: Sequence[str]) -> list[str]:
    """Paths of the modules whose path ends with one of these names."""
    return [path for path, _ in base_modules(model) if any(f".{path}".endswith(f".{end}") for end in ends)]


def in_layers(model: PreTrainedModel, paths: Sequence[str], layers: Sequence[int]) -> list[str]:
    """Those of the paths that stand in these decoder layers.

    Raises:
        ValueError: naming a layer that the model does not have.
    """
    count = cast(int, model.config.get_text_config(decoder=True).num_hidden_layers)
    if wrong := [layer for layer in layers if layer >= count]:
        raise ValueError(f"model.tuning.layers={list(layers)}: the model has layers 0 to {count - 1}, not {wrong[0]}")
    return [path for path in paths if layer_of(path) in layers]


def layer_of(path: str) -> int | None:
    """Index of the decoder layer that a path leads into: its first part that is a number."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", path)
    return None if found is None else int(found.group(1))


@torch.no_grad()
def merge_layers(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Merges adapters and takes all adapter layers out of a model."""
    for path, layer in injected_layers(model):
        held = [name for name in names if name in layer._get_available_adapters()]
        if held:
            layer.merge(safe_merge=True, adapter_names=held)
        parent, _, child = path.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _named_parameters(path: str, layer: BaseTunerLayer, adapter: str) -> Iterator[tuple[str, Parameter]]:
    """`lora_A.<adapter>.weight` of the layer at `path`, as `base_model.model.<path>.lora_A.weight`."""
    for name, parameter in cast(nn.Module, layer).named_parameters():
        kind, _, rest = name.partition(".")
        owner, _, leaf = rest.partition(".")
        if kind in layer.adapter_layer_names and owner == adapter:
            # The one tensor that PEFT saves without the name of its parameter (DoRA).
            leaves = [] if kind == _MAGNITUDE else [leaf]
            yield ".".join(part for part in (f"{_PEFT_PREFIX}{path}", kind, *leaves) if part), parameter
