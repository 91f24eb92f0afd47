"""Bottleneck adapters: small networks behind a sub-layer (serial) or beside it (parallel).

Owns their layer and its registration as the PEFT method `bottleneck`. Which modules are adapted is the business of
`policies.peft_configs`.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftConfig
from torch import Tensor, nn
from torch.nn import functional

from policies.tuners.layers import OwnTuner, OwnTunerLayer, widths
from policies.tuners.registration import peft_type, register

Activation = Literal["relu", "gelu", "silu"]
_ACTIVATIONS = {"relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu}


@dataclass
class BottleneckConfig(PeftConfig):
    """PEFT's view of a bottleneck adapter."""

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules that are adapted."})
    bottleneck_size: int = field(default=16, metadata={"help": "Width of the bottleneck."})
    activation: Activation = field(default="relu", metadata={"help": "Activation function."})
    is_parallel: bool = field(default=False, metadata={"help": "Reads the module's input instead of its output."})
    scale: float = field(default=1.0, metadata={"help": "Factor of what the adapter adds."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("bottleneck")


class BottleneckLayer(OwnTunerLayer):
    """y + s up(f(down(z))), with y = module(x) and z = y (serial: Houlsby et al. 2019) or x (parallel: He et al. 2022).

    `up` starts at 0, so a new adapter changes nothing.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up")
    other_param_names = ("scaling",)

    def open_containers(self) -> None:
        """See `OwnTunerLayer`."""
        self.bottleneck_down, self.bottleneck_up = nn.ModuleDict(), nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self._shape: dict[str, tuple[Activation, bool]] = {}

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """See `OwnTunerLayer`."""
        reads, writes = widths(self.get_base_layer())
        down = nn.Linear(reads if config.is_parallel else writes, config.bottleneck_size)
        up = nn.Linear(config.bottleneck_size, writes)
        for zero in (down.bias, up.weight, up.bias):
            nn.init.zeros_(zero)
        self.bottleneck_down[adapter_name] = down.to(self.base_device)
        self.bottleneck_up[adapter_name] = up.to(self.base_device)
        self.scaling[adapter_name] = config.scale
        self._shape[adapter_name] = (config.activation, config.is_parallel)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out) in the precision of the module; the adapter computes in its own."""
        output: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.active_among(self.bottleneck_down):
            activation, is_parallel = self._shape[name]
            down, up = self.bottleneck_down[name], self.bottleneck_up[name]
            inputs = (x if is_parallel else output).to(torch.float32)
            added = up(_ACTIVATIONS[activation](down(inputs)))
            output = output + (self.scaling[name] * added).to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        """Always refused: between `down` and `up` stands a function that no weight can hold."""
        raise ValueError("a bottleneck adapter is not linear, so it cannot be merged; keep its folder beside the base")


class BottleneckModel(OwnTuner):
    """PEFT's model of the method."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLayer


register("bottleneck", BottleneckConfig, BottleneckModel)
