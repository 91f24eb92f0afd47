"""Queries, keys and values as the layers make them, tokens first, and as blocks for batched products, heads first.

Owns the copies between the two, and their gradients. A rotary embedding (Su et al. 2021) is applied on the way, which
saves the ten operations on transposed tensors by which transformers applies it (transformers 5.23).
"""

from typing import Any, cast

import torch
from torch import Tensor

from policies.packed_rows import PackedRows

Rotation = tuple[Tensor, Tensor]
"""(N, head size) cosines and sines of the tokens' positions."""


def to_blocks(states: Tensor, rows: PackedRows, *, groups: int = 1, rotation: Rotation | None = None) -> Tensor:
    """(N, heads * groups, size) tokens -> (heads * M, groups * W, size), 0 at padding, turned on the way.

    Query heads that share a key-value head, `groups` of them, are rows of one product.
    """
    cos, sin = (None, None) if rotation is None else rotation
    return cast(Tensor, _ToBlocks.apply(states, rows, groups, cos, sin))


def from_blocks(blocks: Tensor, rows: PackedRows, *, groups: int = 1) -> Tensor:
    """(heads * M, groups * W, size) -> (N, heads * groups, size)."""
    return cast(Tensor, _FromBlocks.apply(blocks, rows, groups))


class _ToBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, rows: PackedRows, groups: int, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        rotation = None if cos is None or sin is None else (rows.spread(cos), rows.spread(sin))
        ctx.save_for_backward(*(rotation or ()))
        ctx.rows, ctx.groups = rows, groups
        return _blocks(states, rows, groups, rotation)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        # Turning back is turning by the transposed matrix.
        rotation = cast(tuple[Tensor, ...], ctx.saved_tensors)
        back = (rotation[0], -rotation[1].roll(rotation[1].shape[-1] // 2, -1)) if rotation else None
        return _tokens(gradients[0], ctx.rows, ctx.groups, back), None, None, None, None


class _FromBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, blocks: Tensor, rows: PackedRows, groups: int) -> Tensor:
        ctx.rows, ctx.groups = rows, groups
        return _tokens(blocks, rows, groups, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return _blocks(gradients[0], ctx.rows, ctx.groups, None), None, None


def _blocks(states: Tensor, rows: PackedRows, groups: int, rotation: Rotation | None) -> Tensor:
    """`rotation` is that of the slots."""
    slots, size = rows.spread(states), states.shape[-1]
    heads_first = states.new_empty(states.shape[1], rows.slot_count, size)
    _put(slots, rotation, into=heads_first.transpose(0, 1))
    apart = heads_first.view(-1, groups, rows.rows, rows.width, size).transpose(1, 2)
    return apart.reshape(-1, groups * rows.width, size)


def _tokens(blocks: Tensor, rows: PackedRows, groups: int, rotation: Rotation | None) -> Tensor:
    size = blocks.shape[-1]
    apart = blocks.reshape(-1, rows.rows, groups, rows.width, size).transpose(1, 2)
    heads_first = apart.reshape(-1, rows.slot_count, size)
    slots = blocks.new_empty(rows.slot_count, heads_first.shape[0], size)
    _put(heads_first.transpose(0, 1), rotation, into=slots)
    return rows.gather(slots)


def _put(states: Tensor, rotation: Rotation | None, *, into: Tensor) -> None:
    """(S, heads, size) as they are, or x cos + (-second half of x, first half of x) sin."""
    if rotation is None:
        into.copy_(states)
        return
    half = states.shape[-1] // 2
    (first, second), (to_first, to_second) = states.split(half, -1), into.split(half, -1)
    (cos_first, cos_second), (sin_first, sin_second) = (angles[:, None].split(half, -1) for angles in rotation)
    torch.mul(first, cos_first, out=to_first).addcmul_(second, sin_first, value=-1)
    torch.mul(second, cos_second, out=to_second).addcmul_(first, sin_second)
