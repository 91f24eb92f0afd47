"""Queries, keys and values as the layers make them, tokens first, and as blocks for batched products, heads first.

Owns the copies between the two, and their gradients. A rotary embedding (Su et al. 2021) is applied on the way, which
saves the ten operations on transposed tensors by which transformers applies it (transformers 5.23).
"""

from collections.abc import Sequence
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
    return parts_to_blocks(states, (rows,), groups=groups, rotation=rotation)[0]


def parts_to_blocks(
    states: Tensor, parts: Sequence[PackedRows], *, groups: int = 1, rotation: Rotation | None = None
) -> tuple[Tensor, ...]:
    """`to_blocks` of tokens that are those of several layouts one after the other: blocks for each of them."""
    cos, sin = (None, None) if rotation is None else rotation
    return cast(tuple[Tensor, ...], _ToBlocks.apply(states, parts, groups, cos, sin))


def from_blocks(blocks: Tensor, rows: PackedRows, *, groups: int = 1) -> Tensor:
    """(heads * M, groups * W, size) -> (N, heads * groups, size)."""
    return parts_from_blocks((blocks,), (rows,), groups=groups)


def parts_from_blocks(blocks: Sequence[Tensor], parts: Sequence[PackedRows], *, groups: int = 1) -> Tensor:
    """The way back from `parts_to_blocks`: the tokens of all layouts, one after the other."""
    return cast(Tensor, _FromBlocks.apply(parts, groups, *blocks))


class _ToBlocks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, parts: Sequence[PackedRows], groups: int, cos: Tensor | None, sin: Tensor | None
    ) -> tuple[Tensor, ...]:
        rotations = _of_slots(parts, None if cos is None or sin is None else (cos, sin))
        ctx.save_for_backward(*(angles for rotation in rotations if rotation is not None for angles in rotation))
        ctx.parts, ctx.groups = parts, groups
        return _blocks(states, parts, groups, rotations)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        saved = cast(tuple[Tensor, ...], ctx.saved_tensors)
        # Turning back is turning by the transposed matrix.
        back = [(cos, -sin.roll(sin.shape[-1] // 2, -1)) for cos, sin in zip(saved[::2], saved[1::2], strict=True)]
        rotations = back or [None] * len(ctx.parts)
        return _tokens(gradients, ctx.parts, ctx.groups, rotations), None, None, None, None


class _FromBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Sequence[PackedRows], groups: int, *blocks: Tensor) -> Tensor:
        ctx.parts, ctx.groups = parts, groups
        return _tokens(blocks, parts, groups, [None] * len(parts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *_blocks(gradients[0], ctx.parts, ctx.groups, [None] * len(ctx.parts))


def _of_slots(parts: Sequence[PackedRows], rotation: Rotation | None) -> Sequence[Rotation | None]:
    if rotation is None:
        return [None] * len(parts)
    cos, sin = (angles.split([rows.token_count for rows in parts]) for angles in rotation)
    return [(rows.spread(c), rows.spread(s)) for rows, c, s in zip(parts, cos, sin, strict=True)]


def _blocks(
    states: Tensor, parts: Sequence[PackedRows], groups: int, rotations: Sequence[Rotation | None]
) -> tuple[Tensor, ...]:
    """`rotations` are those of the slots."""
    of_parts = states.split([rows.token_count for rows in parts])
    return tuple(
        _part_blocks(tokens, rows, groups, rotation)
        for tokens, rows, rotation in zip(of_parts, parts, rotations, strict=True)
    )


def _part_blocks(states: Tensor, rows: PackedRows, groups: int, rotation: Rotation | None) -> Tensor:
    slots, size = rows.spread(states), states.shape[-1]
    heads_first = states.new_empty(states.shape[1], rows.slot_count, size)
    _put(slots, rotation, into=heads_first.transpose(0, 1))
    apart = heads_first.view(-1, groups, rows.rows, rows.width, size).transpose(1, 2)
    return apart.reshape(-1, groups * rows.width, size)


def _tokens(
    blocks: Sequence[Tensor], parts: Sequence[PackedRows], groups: int, rotations: Sequence[Rotation | None]
) -> Tensor:
    size, counts = blocks[0].shape[-1], [rows.token_count for rows in parts]
    heads = blocks[0].shape[0] // parts[0].rows * groups
    # One tensor for all parts, so that nothing has to be joined.
    tokens = blocks[0].new_empty(sum(counts), heads, size)
    for part, rows, rotation, into in zip(blocks, parts, rotations, tokens.split(counts), strict=True):
        apart = part.reshape(-1, rows.rows, groups, rows.width, size).transpose(1, 2)
        heads_first = apart.reshape(heads, rows.slot_count, size)
        if rows.slots is None:
            _put(heads_first.transpose(0, 1), rotation, into=into)
        else:
            slots = part.new_empty(rows.slot_count, heads, size)
            _put(heads_first.transpose(0, 1), rotation, into=slots)
            torch.index_select(slots, 0, rows.slots, out=into)
    return tokens


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
