"""Which base an adapter belongs to: the weights beneath adapters, their fingerprint, and what metadata say of them.

Owns the rule that an adapter only meets the base it was trained on.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel

from policies.quantization import quantization_of
from policies.sharding import copy_whole_

_SAMPLES_PER_TENSOR = 4096


def base_parameters(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Named parameters without those of adapters, under the names they have without adapters. Shared ones come once."""
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    adapters = {
        id(parameter)
        for layer in layers
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    for name, parameter in module.named_parameters():
        if id(parameter) not in adapters:
            yield name.replace(".base_layer.", "."), parameter


def base_fingerprint(model: PreTrainedModel) -> str:
    """Identity of the weights an adapter was trained on, over names, shapes and up to 8192 values of every tensor.

    Only the body counts, without output layer or score head, so that a policy and a reward model on the same body
    agree. Values are cast to bfloat16 first: the precision a model is loaded in does not matter. Reads every tensor;
    keep the result.
    """
    digest = hashlib.sha256()
    # The codes of quantized layers count as they are, so that each format of a base is a base of its own.
    for name, parameter in sorted(base_parameters(model.base_model), key=lambda entry: entry[0]):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        stride = max(1, parameter.numel() // _SAMPLES_PER_TENSOR)
        sample = parameter.detach().reshape(-1)[::stride].to(torch.bfloat16)
        digest.update(sample.cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def about_base(model: PreTrainedModel, fingerprint: str | None = None) -> dict[str, Any]:
    """What an adapter's metadata says of its base; its fingerprint is computed where it is not given."""
    return {"base_fingerprint": fingerprint or base_fingerprint(model), "base_quantization": quantization_of(model)}


def base_difference(
    model: PreTrainedModel, metadata: Mapping[str, Any], *, fingerprint: str | None = None
) -> str | None:
    """How a base differs from the one that metadata of `about_base` speak of, as a piece of a sentence; None if not."""
    recorded, format = metadata["base_fingerprint"], metadata.get("base_quantization", "none")
    own, own_format = fingerprint or base_fingerprint(model), quantization_of(model)
    if recorded == own:
        return None
    if format != own_format:
        return (
            f"a base with model.quantization={format}, but {model.name_or_path!r} is loaded with {own_format}: set "
            f"model.quantization={format}"
        )
    return f"a base with fingerprint {recorded}, but {model.name_or_path!r} has {own}"


def copy_exactly(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copies tensors into parameters of the same names and shapes.

    Raises:
        ValueError: naming the first differences.
    """
    missing, unknown = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or unknown:
        raise ValueError(f"{what}: the tensors do not fit; missing {missing[:3]}, unknown {unknown[:3]}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{what}: {name} has shape {tuple(tensors[name].shape)}; {tuple(parameter.shape)} is needed"
            )
    for name, parameter in parameters.items():
        copy_whole_(parameter, tensors[name])
