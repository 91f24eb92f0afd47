"""Rows of unlike length as one packed row of their tokens, and the way to padded slots and back.

Owns the layout. Who attends to whom is `policies.packed_attention` and, where rows share their beginnings,
`policies.shared_prefix_attention`.
"""

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from policies.round_sizes import round_places, round_size


@dataclass(frozen=True, slots=True)
class PackedRows:
    """M right-padded rows of T tokens, of which N are computed, in M rows of W slots for attention.

    Attributes:
        rows: M.
        tokens: T.
        width: W, T or a little more.
        places: (N,) places of the tokens in the flattened (M * T,); None where N is M * T.
        slots: (N,) slots of the tokens in the flattened (M * W,); None where N is M * W.
        layers: Identities of the attention layers that have kept these rows apart.
    """

    rows: int
    tokens: int
    width: int
    places: Tensor | None
    slots: Tensor | None
    layers: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, mask: Tensor) -> "PackedRows":
        """The layout of an (M, T) mask that is True at real tokens; unlike rows are brought to round sizes.

        Of the padding, what fills N is computed with the tokens: it stands behind them, where no token sees it.
        """
        rows, tokens = mask.shape
        if bool(mask.all()):
            return cls(rows, tokens, tokens, None, None)
        width, places = round_size(tokens, mask.device), round_places(mask.reshape(-1))
        slots = places // tokens * width + places % tokens
        return cls(rows, tokens, width, _unless_all(places, mask.numel()), _unless_all(slots, rows * width))

    @property
    def slot_count(self) -> int:
        """S = M * W."""
        return self.rows * self.width

    @property
    def token_count(self) -> int:
        """N."""
        return self.rows * self.tokens if self.places is None else self.places.shape[0]

    def pack(self, padded: Tensor) -> Tensor:
        """(M, T, ...) -> (1, N, ...), the tokens of one row after another."""
        return _gathered(padded.flatten(0, 1), self.places).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (M, T, ...), arbitrary at padding."""
        flat = _spread_out(packed.squeeze(0), self.places, self.rows * self.tokens)
        return flat.unflatten(0, (self.rows, self.tokens))

    def gather(self, slots: Tensor) -> Tensor:
        """(S, ...) -> (N, ...), what stands in the slots of tokens."""
        return _gathered(slots, self.slots)

    def spread(self, tokens: Tensor) -> Tensor:
        """(N, ...) -> (S, ...), 0 in the slots of no token."""
        return _spread_out(tokens, self.slots, self.slot_count)

    def packed_index(self, places: Tensor) -> Tensor:
        """Places of tokens in the flattened (M * T,) -> theirs among the N."""
        return places if self.places is None else torch.searchsorted(self.places, places)


def _unless_all(places: Tensor, count: int) -> Tensor | None:
    return None if len(places) == count else places


def _gathered(all_of_them: Tensor, places: Tensor | None) -> Tensor:
    return all_of_them if places is None else cast(Tensor, _Gather.apply(all_of_them, places))


def _spread_out(tokens: Tensor, places: Tensor | None, count: int) -> Tensor:
    """0 elsewhere; the tokens themselves where they are all."""
    return tokens if places is None else cast(Tensor, _Spread.apply(tokens, places, count))


def _put_at(tokens: Tensor, places: Tensor, count: int) -> Tensor:
    return tokens.new_zeros(count, *tokens.shape[1:]).index_copy_(0, places, tokens)


class _Gather(torch.autograd.Function):
    """Every token has one place, so the gradient is spread and nothing is summed, as autograd would for any index."""

    @staticmethod
    def forward(ctx: Any, all_of_them: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = all_of_them.shape[0]
        return all_of_them.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _put_at(gradients[0], ctx.saved_tensors[0], ctx.count), None


class _Spread(torch.autograd.Function):
    """The other way round."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        return _put_at(tokens, places, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, ctx.saved_tensors[0]), None, None
