"""BitFit: the bias terms of a model train, and nothing else (Ben Zaken et al. 2022).

Owns the layer and its registration as the PEFT method `bitfit`. An adapter holds the difference to the model's own
biases, so that several adapters share a model and one that is off is the model, bit by bit.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from policies.tuners.layers import OwnTuner, OwnTunerLayer
from policies.tuners.registration import peft_type, register


@dataclass
class BitFitConfig(PeftConfig):
    """PEFT's view of the method."""

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules whose bias trains."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("bitfit")


class BitFitLayer(OwnTunerLayer):
    """module(x) + d, where d starts at 0 and is what its bias has moved by."""

    adapter_layer_names = ("bitfit_bias",)

    def open_containers(self) -> None:
        """See `OwnTunerLayer`."""
        self.bitfit_bias = nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """See `OwnTunerLayer`."""
        size = bias_size(self.get_base_layer())
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros(size, device=self.base_device))
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out) in the precision of the module."""
        output: Tensor = self.base_layer(x, *args, **kwargs)
        for name in self.active_among(self.bitfit_bias):
            output = (output + self.bitfit_bias[name]).to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        """Adds the difference to the module's bias; a module that had none gets one."""
        base = cast(nn.Linear, self.get_base_layer())
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name in self.bitfit_bias:
                moved = self.bitfit_bias[name].data
                own = torch.zeros_like(moved) if base.bias is None else base.bias.data
                base.bias = nn.Parameter((own + moved).to(base.weight.dtype), requires_grad=False)
                self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Takes merged differences off again."""
        base = cast(nn.Linear, self.get_base_layer())
        while self.merged_adapters:
            base.bias.data -= self.bitfit_bias[self.merged_adapters.pop()].data.to(base.bias.dtype)


class BitFitModel(OwnTuner):
    """PEFT's model of the method."""

    prefix = "bitfit_"
    tuner_layer_cls = BitFitLayer


def bias_size(module: nn.Module) -> int:
    """Numbers that a bias of this module has."""
    weight = cast(Tensor, module.weight)
    return weight.shape[1] if isinstance(module, Conv1D) else weight.shape[0]


register("bitfit", BitFitConfig, BitFitModel)
