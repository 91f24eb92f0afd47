"""The last MLP of a decoder, computed only for tokens whose state is read.

Owns finding it and leaving the others out. Behind the last attention no token sees another, so this is exact.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ROUTERS = frozenset({"experts", "router", "gate"})


def final_mlp(body: PreTrainedModel) -> nn.Module | None:
    """The MLP of the last layer; None where it does not map states to states token by token, or is not to be found."""
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    mlp = getattr(layers[-1], "mlp", None) if isinstance(layers, nn.ModuleList) and len(layers) else None
    if not isinstance(mlp, nn.Module) or _ROUTERS & {name for name, _ in mlp.named_children()}:
        return None
    return mlp if len(inspect.signature(mlp.forward).parameters) == 1 else None


@contextmanager
def computed_only_at(mlp: nn.Module | None, tokens: Tensor) -> Iterator[None]:
    """In this context the MLP reads these tokens alone and gives 0 for all others.

    Args:
        mlp: From `final_mlp`; None changes nothing.
        tokens: (S,) long, places in the (M * T) tokens of a forward pass.
    """
    if mlp is None:
        yield
        return
    shape = torch.Size()

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0].flatten(0, -2).index_select(0, tokens),)

    def put_back(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        everywhere = output.new_zeros((shape[:-1].numel(), output.shape[-1]))
        return everywhere.index_copy(0, tokens, output).unflatten(0, shape[:-1])

    hooks = [mlp.register_forward_pre_hook(select), mlp.register_forward_hook(put_back)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
