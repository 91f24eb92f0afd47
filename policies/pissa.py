"""PiSSA: LoRA that starts from the principal components of the weights (Meng et al. 2024).

Owns how that leaves the base untouched. The paper trains A, B on W - s B0 A0, where s B0 A0 is the part of W with the
largest singular values, and A, B start at A0, B0. Here W stays, and a second, frozen pair `start` = (A0, -B0) stands
beside the first:

    W x + s B A x - s B0 A0 x

Folders hold both as one plain LoRA of twice the rank, which is the form that PEFT converts PiSSA to.
"""

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

START = "start"
"""What stands in the names of the frozen pair's tensors."""


@torch.no_grad()
def start_from_principal_components(layers: Iterable[LoraLayer], name: str, start: str) -> None:
    """Gives two adapters the values above; the sum of both is 0, so they change nothing yet.

    Raises:
        ValueError: if a layer holds no plain weight.
    """
    for layer in layers:
        weight = cast(nn.Parameter, layer.get_base_layer().weight)
        original = weight.data
        try:
            layer.pissa_init(name, "pissa")
        except TypeError as error:
            raise ValueError("model.tuning.variant=pissa: the weights must be floats; set quantization=none") from error
        weight.data = original
        pair, frozen = ((_weight(layer.lora_A, key), _weight(layer.lora_B, key)) for key in (name, start))
        for target, value in zip(frozen, (pair[0], -pair[1]), strict=True):
            target.copy_(value)


def with_doubled_rank(config: LoraConfig) -> LoraConfig:
    """The configuration of the joined adapter; its scaling is the same."""
    config.r *= 2
    config.lora_alpha *= 2
    return config


def with_halved_rank(config: LoraConfig) -> LoraConfig:
    """The configuration of each of the two adapters that were joined."""
    config.r //= 2
    config.lora_alpha = cast(int, config.lora_alpha / 2)
    return config


def joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Both pairs -> one: A and A0 above each other, B and -B0 side by side."""
    return {
        name: torch.cat([tensor, tensors[frozen_name(name)]], dim=_rank_axis(name))
        for name, tensor in tensors.items()
        if f".{START}." not in name
    }


def parted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One pair -> both."""
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts[name], parts[frozen_name(name)] = tensor.chunk(2, dim=_rank_axis(name))
    return parts


def frozen_name(name: str) -> str:
    """`q_proj.lora_A.weight` -> `q_proj.lora_A.start.weight`."""
    path, _, leaf = name.rpartition(".")
    return f"{path}.{START}.{leaf}"


def _rank_axis(name: str) -> int:
    return 0 if ".lora_A." in name else 1


def _weight(factors: Any, name: str) -> Tensor:
    return cast(nn.Linear, factors[name]).weight
