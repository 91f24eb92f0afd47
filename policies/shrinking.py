"""Smaller models cut out of a larger one: fewer layers, attention heads and neurons, each kept as it was.

Owns which weights stay and the configuration that goes with them. Recovery training is the caller's business. The
magnitude of a head or neuron is the L2 norm of all its weights (Han et al. 2015 by weight; Li et al. 2017 by filter).
"""

import copy
import re
from collections.abc import Sequence
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

_ROWS_OF_HEADS, _COLUMNS_OF_HEADS = ("q_proj",), ("o_proj",)
_ROWS_OF_GROUPS = ("k_proj", "v_proj")
_ROWS_OF_NEURONS, _COLUMNS_OF_NEURONS = ("gate_proj", "up_proj"), ("down_proj",)


def every_nth(layers: int, n: int) -> list[int]:
    """Layers 0, n, 2n, ...: what stays when every n-th layer is kept."""
    return list(range(0, layers, n))


def with_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A copy with only these decoder layers, in the order given.

    Raises:
        ValueError: a layer does not exist or stands there twice, or the architecture's layers are not found.
    """
    path, config = _layers_path(model), _text_config(model)
    count = config.num_hidden_layers
    if not kept or len(set(kept)) < len(kept) or not set(kept) <= set(range(count)):
        raise ValueError(f"layers={list(kept)}: name different layers of 0 to {count - 1}, at least one")
    new = copy.deepcopy(model.config)
    text = new.get_text_config()
    text.num_hidden_layers = len(kept)
    if isinstance(kinds := getattr(config, "layer_types", None), list):
        text.layer_types = [kinds[index] for index in kept]
    places = {old: place for place, old in enumerate(kept)}
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\.(.*)")
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is None:
            tensors[name] = tensor
        elif int(match[1]) in places:
            tensors[f"{path}.{places[int(match[1])]}.{match[2]}"] = tensor
    return _rebuilt(model, new, tensors)


def with_width(
    model: PreTrainedModel, *, key_value_groups: int | None = None, intermediate_size: int | None = None
) -> PreTrainedModel:
    """A copy with the heads and neurons of the largest magnitude in each layer, in their old order.

    A group is a head of keys and values with the query heads that read it; it goes as a whole.

    Args:
        model: Of the Llama family: projections named as there.
        key_value_groups: Groups that stay in each layer; None keeps all.
        intermediate_size: Neurons of the MLP that stay in each layer; None keeps all.

    Raises:
        ValueError: more than there are, or the architecture names its projections otherwise.
    """
    tensors = dict(model.state_dict())
    new = copy.deepcopy(model.config)
    text, size = new.get_text_config(), _head_size(model)
    layers = _layers_of(model)
    if key_value_groups is not None:
        groups = _groups(model)
        _require_within("key_value_groups", key_value_groups, groups)
        heads = text.num_attention_heads // groups
        for path, layer in layers:
            kept = _largest(
                _magnitudes(layer, groups, (*_ROWS_OF_HEADS, *_ROWS_OF_GROUPS), _COLUMNS_OF_HEADS), key_value_groups
            )
            queries, keys = _expanded(kept, heads * size), _expanded(kept, size)
            _keep_rows(tensors, path, layer, _ROWS_OF_HEADS, queries)
            _keep_columns(tensors, path, layer, _COLUMNS_OF_HEADS, queries)
            _keep_rows(tensors, path, layer, _ROWS_OF_GROUPS, keys)
        text.head_dim = size
        text.num_attention_heads, text.num_key_value_heads = heads * key_value_groups, key_value_groups
    if intermediate_size is not None:
        _require_within("intermediate_size", intermediate_size, text.intermediate_size)
        for path, layer in layers:
            magnitudes = _magnitudes(layer, text.intermediate_size, _ROWS_OF_NEURONS, _COLUMNS_OF_NEURONS)
            kept = _largest(magnitudes, intermediate_size)
            _keep_rows(tensors, path, layer, _ROWS_OF_NEURONS, kept)
            _keep_columns(tensors, path, layer, _COLUMNS_OF_NEURONS, kept)
        text.intermediate_size = intermediate_size
    return _rebuilt(model, new, tensors)


def _rebuilt(model: PreTrainedModel, config: PreTrainedConfig, tensors: dict[str, Tensor]) -> PreTrainedModel:
    """A model of the configuration with these weights, on the same device and in the same precision.

    Raises:
        ValueError: transformers could neither save nor load a model of this shape.
    """
    try:
        type(config).from_dict(config.to_dict())
    except StrictDataclassClassValidationError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"{type(model).__name__} cannot have what is left: {reason} Cut another number") from error
    with torch.random.fork_rng(devices=[]):
        small = type(model)._from_config(
            config, dtype=model.dtype, attn_implementation=model.config._attn_implementation
        )
    small.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()})
    small.name_or_path = model.name_or_path
    return cast(PreTrainedModel, small.to(cast(Any, model.device)).eval())


def _layers_path(model: PreTrainedModel) -> str:
    count = _text_config(model).num_hidden_layers
    found = [
        path for path, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} lists of {count} layers; shrinking needs exactly one: give a "
            "smaller student by student.kind=model instead"
        )
    return found[0]


def _layers_of(model: PreTrainedModel) -> list[tuple[str, nn.Module]]:
    path = _layers_path(model)
    layers = [(f"{path}.{index}", layer) for index, layer in enumerate(cast(nn.ModuleList, model.get_submodule(path)))]
    needed = {*_ROWS_OF_HEADS, *_COLUMNS_OF_HEADS, *_ROWS_OF_GROUPS, *_ROWS_OF_NEURONS, *_COLUMNS_OF_NEURONS}
    names = {name.rpartition(".")[2] for name, module in layers[0][1].named_modules() if isinstance(module, nn.Linear)}
    if not needed <= names:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(sorted(needed - names))}; heads and neurons are cut from models "
            "with the projections of Llama only: shrink its depth, or give a smaller student by student.kind=model"
        )
    return layers


def _magnitudes(layer: nn.Module, units: int, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """(units,) L2 norm of the weights of each unit: rows of some projections, columns of others."""
    total = torch.zeros(units, dtype=torch.float64)
    for name in rows:
        weight = _linear(layer, name)[1].weight.detach().double().cpu()
        total += weight.reshape(units, -1).square().sum(1)
    for name in columns:
        weight = _linear(layer, name)[1].weight.detach().double().cpu()
        total += weight.T.reshape(units, -1).square().sum(1)
    return total.sqrt()


def _largest(magnitudes: Tensor, count: int) -> Tensor:
    return magnitudes.topk(count).indices.sort().values


def _expanded(units: Tensor, width: int) -> Tensor:
    """Indices of all rows of units that are `width` rows each."""
    return (units[:, None] * width + torch.arange(width)).reshape(-1)


def _keep_rows(tensors: dict[str, Tensor], path: str, layer: nn.Module, names: Sequence[str], kept: Tensor) -> None:
    for name in names:
        inner, linear = _linear(layer, name)
        tensors[f"{path}.{inner}.weight"] = linear.weight.detach()[kept]
        if linear.bias is not None:
            tensors[f"{path}.{inner}.bias"] = linear.bias.detach()[kept]


def _keep_columns(tensors: dict[str, Tensor], path: str, layer: nn.Module, names: Sequence[str], kept: Tensor) -> None:
    for name in names:
        inner, linear = _linear(layer, name)
        tensors[f"{path}.{inner}.weight"] = linear.weight.detach()[:, kept]


def _linear(layer: nn.Module, name: str) -> tuple[str, nn.Linear]:
    return next(
        (path, module)
        for path, module in layer.named_modules()
        if isinstance(module, nn.Linear) and path.rpartition(".")[2] == name
    )


def _require_within(field: str, value: int, present: int) -> None:
    if value > present:
        raise ValueError(f"{field}={value}: the model has {present}; name fewer")


def _groups(model: PreTrainedModel) -> int:
    config = _text_config(model)
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _head_size(model: PreTrainedModel) -> int:
    config = _text_config(model)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _text_config(model: PreTrainedModel) -> Any:
    return model.config.get_text_config()
