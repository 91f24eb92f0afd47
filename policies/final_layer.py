"""The end of a decoder, computed only for tokens whose state is read.

Owns finding the parts of the last layer that no other token reads, and leaving tokens out of them: the projections to
queries and of what attention gives, and the MLP. Keys and values of all tokens are computed, so this is exact.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_ROUTERS = frozenset({"experts", "router", "gate"})


@dataclass(slots=True)
class _Reading:
    """What the pass of this thread reads.

    Attributes:
        tokens: (S,) long, places in the (M * T) tokens of the pass.
        shape: Of what the part that runs now was given.
    """

    tokens: Tensor
    shape: torch.Size = field(default_factory=torch.Size)


_READING: ContextVar[_Reading | None] = ContextVar("_READING", default=None)


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


def follow_readers(parts: Sequence[nn.Module]) -> None:
    """From now on the parts heed `computed_only_at`.

    For good, because hooks that came and went with each pass would change under the passes of other threads.

    Args:
        parts: From `final_parts`; those that do so already stay as they are.
    """
    for part in parts:
        if _select not in part._forward_pre_hooks.values():
            part.register_forward_pre_hook(_select)
            part.register_forward_hook(_put_back)


@contextmanager
def computed_only_at(tokens: Tensor) -> Iterator[None]:
    """In this context, in this thread, parts that follow readers read these tokens alone and give 0 for all others.

    Args:
        tokens: (S,) long, places in the (M * T) tokens of a forward pass.
    """
    before = _READING.set(_Reading(tokens))
    try:
        yield
    finally:
        _READING.reset(before)


def tokens_read_by(part: nn.Module) -> Tensor | None:
    """(S,) places of the tokens that a part which follows readers computes in this context; None where it is all."""
    reading = _READING.get()
    return None if reading is None or _select not in part._forward_pre_hooks.values() else reading.tokens


def _select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor] | None:
    reading = _READING.get()
    if reading is None:
        return None
    reading.shape = inputs[0].shape
    return (inputs[0].flatten(0, -2).index_select(0, reading.tokens),)


def _put_back(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
    reading = _READING.get()
    if reading is None:
        return None
    everywhere = output.new_zeros((reading.shape[:-1].numel(), output.shape[-1]))
    return everywhere.index_copy(0, reading.tokens, output).unflatten(0, reading.shape[:-1])
