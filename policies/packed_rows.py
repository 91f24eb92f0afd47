"""Rows of unlike length as one packed row of their tokens, and the way to padded slots and back.

Owns the layout. Who attends to whom is `policies.packed_attention` and, where rows share their beginnings,
`policies.shared_prefix_attention`.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PackedRows:
    """M right-padded rows of T slots, of which N hold tokens.

    Attributes:
        rows: M.
        width: T.
        slots: (N,) slots of the tokens in the flattened (M * T,); None where every slot holds one.
        layers: Identities of the attention layers that have kept these rows apart.
    """

    rows: int
    width: int
    slots: Tensor | None
    layers: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, mask: Tensor) -> "PackedRows":
        """The layout of an (M, T) mask that is True at real tokens."""
        rows, width = mask.shape
        return cls(rows, width, None if bool(mask.all()) else mask.reshape(-1).nonzero().squeeze(1))

    @classmethod
    def of_lengths(cls, lengths: Tensor) -> "PackedRows":
        """The layout of right-padded rows of these (M,) lengths, one of which may be 0."""
        return cls.of(torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None])

    @property
    def slot_count(self) -> int:
        """S = M * T."""
        return self.rows * self.width

    @property
    def token_count(self) -> int:
        """N."""
        return self.slot_count if self.slots is None else self.slots.shape[0]

    def pack(self, padded: Tensor) -> Tensor:
        """(M, T, ...) -> (1, N, ...), the tokens of one row after another."""
        return self.gather(padded.reshape(self.slot_count, *padded.shape[2:])).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (M, T, ...), 0 at padding."""
        slots = self.spread(packed.squeeze(0))
        return slots.reshape(self.rows, self.width, *slots.shape[1:])

    def gather(self, slots: Tensor) -> Tensor:
        """(S, ...) -> (N, ...), what stands in the slots of tokens."""
        return slots if self.slots is None else cast(Tensor, _Gather.apply(slots, self.slots))

    def spread(self, tokens: Tensor) -> Tensor:
        """(N, ...) -> (S, ...), 0 in the slots of padding."""
        return tokens if self.slots is None else cast(Tensor, _Spread.apply(tokens, self.slots, self.slot_count))


def _gathered(slots: Tensor, places: Tensor) -> Tensor:
    return slots.index_select(0, places)


def _spread_out(tokens: Tensor, places: Tensor, count: int) -> Tensor:
    return tokens.new_zeros(count, *tokens.shape[1:]).index_copy_(0, places, tokens)


class _Gather(torch.autograd.Function):
    """Every token has one slot, so the gradient is spread and nothing is summed, as autograd would for any index."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = slots.shape[0]
        return _gathered(slots, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _spread_out(gradients[0], ctx.saved_tensors[0], ctx.count), None


class _Spread(torch.autograd.Function):
    """The other way round."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        return _spread_out(tokens, places, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _gathered(gradients[0], ctx.saved_tensors[0]), None, None
