"""The end of a decoder, computed only for tokens whose state is read.

Owns finding the parts of the last layer that no other token reads, and leaving tokens out of them: the projections to
queries and of what attention gives, and the MLP. Keys and values of all tokens are computed, so this is exact.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ROUTERS = frozenset({"experts", "router", "gate"})


def final_parts(body: PreTrainedModel) -> list[nn.Module]:
    """What of the last layer maps states to states token by token, for that token alone; empty where none is known."""
    layers = getattr(body, "layers", None) or getattr(body, "h", None)
    last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else nn.Identity()
    attention, mlp = getattr(last, "self_attn", None), getattr(last, "mlp", None)
    projections = [getattr(attention, name, None) for name in ("q_proj", "o_proj")]
    return [part for part in (*projections, mlp) if isinstance(part, nn.Module) and _is_token_wise(part)]


def _is_token_wise(part: nn.Module) -> bool:
    routes = _ROUTERS & {name for name, _ in part.named_children()}
    return not routes and len(inspect.signature(part.forward).parameters) == 1


@contextmanager
def computed_only_at(parts: Sequence[nn.Module], tokens: Tensor) -> Iterator[None]:
    """In this context the parts read these tokens alone and give 0 for all others.

    Args:
        parts: From `final_parts`.
        tokens: (S,) long, places in the (M * T) tokens of a forward pass.
    """
    shape = torch.Size()

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        nonlocal shape
        shape = inputs[0].shape
        return (inputs[0].flatten(0, -2).index_select(0, tokens),)

    def put_back(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        everywhere = output.new_zeros((shape[:-1].numel(), output.shape[-1]))
        return everywhere.index_copy(0, tokens, output).unflatten(0, shape[:-1])

    hooks = [part.register_forward_pre_hook(select) for part in parts]
    hooks += [part.register_forward_hook(put_back) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
