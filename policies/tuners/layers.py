"""What the layers and models of our PEFT methods share: which adapters of a layer are on, and how one is injected.

Owns no formula. A layer wraps a module of the model and holds parameters by adapter name, as PEFT's own layers do.
"""

from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D


class OwnTunerLayer(nn.Module, BaseTunerLayer):
    """A module of the model with adapters on it.

    Args:
        base_layer: The module.
        adapter_name: The first adapter.
        config: Its configuration.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self.open_containers()
        self.update_layer(adapter_name, config)

    def open_containers(self) -> None:
        """Makes the empty containers that `adapter_layer_names` lists."""
        raise NotImplementedError

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """Adds an adapter."""
        raise NotImplementedError

    def active_among(self, names: Iterable[str]) -> list[str]:
        """The adapters of these that forward passes go through now."""
        if self.disable_adapters or self.merged:
            return []
        held = set(names)
        return [name for name in self.active_adapters if name in held]

    @property
    def base_device(self) -> torch.device:
        """Where the module lives."""
        return next(self.base_layer.parameters()).device


class OwnTuner(BaseTuner):
    """Injects layers of `tuner_layer_cls` into the modules that a configuration names."""

    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - an instance variable of PEFT's base class

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        del current_key, parameter_name  # Nothing here depends on where a module stands.
        if isinstance(target, OwnTunerLayer):
            target.update_layer(adapter_name, peft_config)
        else:
            make: Any = self.tuner_layer_cls
            self._replace_module(parent, target_name, make(target, adapter_name, peft_config), target)


def widths(module: nn.Module) -> tuple[int, int]:
    """Width of the input and of the output of a linear layer, or of a network whose first layer reads its input."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    inner = next((part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)), None)
    if inner is None:
        raise ValueError(f"{type(module).__name__} holds no linear layer; an adapter needs one to know its width")
    width = widths(inner)[0]
    return width, width
