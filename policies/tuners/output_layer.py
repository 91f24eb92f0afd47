"""Head-only tuning: the output layer trains, the body is frozen.

Owns the layer and its registration as the PEFT method `output_layer`. An adapter holds an output layer of its own that
starts as a copy. Where the model ties its output layer to the input embedding, the copy is untied from the start: a
tied one would move the frozen body's input, too.
"""

from dataclasses import dataclass, field
from typing import Any, cast

from peft import PeftConfig
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn
from torch.nn import functional

from policies.tuners.layers import OwnTuner, OwnTunerLayer
from policies.tuners.registration import peft_type, register


@dataclass
class OutputLayerConfig(PeftConfig):
    """PEFT's view of the method."""

    target_modules: list[str] | str | None = field(default=None, metadata={"help": "The output layer's name."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = peft_type("output_layer")


class OutputLayer(OwnTunerLayer):
    """W' x + b', with the adapter's own weight and bias in place of the module's."""

    adapter_layer_names = ("output_layer_weight", "output_layer_bias")

    def open_containers(self) -> None:
        """See `OwnTunerLayer`."""
        self.output_layer_weight, self.output_layer_bias = nn.ParameterDict(), nn.ParameterDict()

    def update_layer(self, adapter_name: str, config: Any) -> None:
        """See `OwnTunerLayer`."""
        base = cast(nn.Linear, self.get_base_layer())
        self.output_layer_weight[adapter_name] = nn.Parameter(base.weight.detach().float().clone())
        if base.bias is not None:
            self.output_layer_bias[adapter_name] = nn.Parameter(base.bias.detach().float().clone())
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def weight(self) -> Tensor:
        """(V, D) weight that is in use now, in the precision of the model; TRL multiplies with it directly."""
        names, base = self.active_among(self.output_layer_weight), cast(Tensor, self.get_base_layer().weight)
        return self.output_layer_weight[names[-1]].to(base.dtype) if names else base

    @property
    def bias(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleMethodOverride] - PEFT's is None at times, too
        """(V,) bias that is in use now; None where the layer has none."""
        names, base = self.active_among(self.output_layer_bias), cast(Tensor | None, self.get_base_layer().bias)
        return self.output_layer_bias[names[-1]].to(self.weight.dtype) if names else base

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) states -> (..., V) logits in the precision of the states."""
        if not self.active_among(self.output_layer_weight):
            return self.base_layer(x)
        return functional.linear(x, self.weight, self.bias)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        """Puts the adapter's weight in the place of the module's, which it unties."""
        base = cast(nn.Linear, self.get_base_layer())
        for name in check_adapters_to_merge(self, adapter_names) or ():
            if name in self.output_layer_weight:
                base.weight = nn.Parameter(self.output_layer_weight[name].data.to(base.weight.dtype))
                if name in self.output_layer_bias:
                    base.bias = nn.Parameter(self.output_layer_bias[name].data.to(base.weight.dtype))
                self.merged_adapters.append(name)


class OutputLayerModel(OwnTuner):
    """PEFT's model of the method."""

    prefix = "output_layer_"
    tuner_layer_cls = OutputLayer

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """PEFT warns of tied layers here; this method unties its own."""


register("output_layer", OutputLayerConfig, OutputLayerModel)
