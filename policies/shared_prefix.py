"""Sequences with common beginnings -> one packed row in which every beginning stands once.

Owns the layout: which token stands where, at which position, and how stretches of the row become padded blocks and
back. Who attends to whom is `policies.shared_prefix_attention`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.sequences import TokenIds

Lengths = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """N rows of a stretch of tokens, and their form as a padded (N, W) block.

    Example: rows of 1 and 3 tokens have index [0, 0, 0, 1, 2, 3] (padding reads token 0) and place [0, 3, 4, 5].

    Attributes:
        lengths: (N,) tokens of each row; 0 is allowed.
        width: W, the longest row.
        index: (N * W,) long, token that each slot of the block reads; any token at padding.
        place: (tokens,) long, slot of each token.
        is_even: All rows have W tokens, so the block is the stretch.
    """

    lengths: Tensor
    width: int
    index: Tensor
    place: Tensor
    is_even: bool

    @classmethod
    def of(cls, lengths: Lengths, device: torch.device | str) -> "RaggedRows":
        """The rows of these lengths, one behind the other."""
        width, starts = int(lengths.max()), np.cumsum(lengths) - lengths
        columns = np.arange(width)
        filled = columns < lengths[:, None]
        index = np.where(filled, starts[:, None] + columns, 0).ravel()
        on_device = [torch.from_numpy(array).to(device) for array in (lengths, index, np.flatnonzero(filled))]
        return cls(on_device[0], width, on_device[1], on_device[2], is_even=bool(filled.all()))

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def to_block(self, tokens: Tensor) -> Tensor:
        """(tokens, ...) -> (N, W, ...); arbitrary at padding, and nothing of a gradient there comes back."""
        block = tokens if self.is_even else cast(Tensor, _Pad.apply(tokens, self.index, self.place))
        return block.unflatten(0, (len(self), self.width))

    def from_block(self, block: Tensor) -> Tensor:
        """(N, W, ...) -> (tokens, ...)."""
        slots = block.flatten(0, 1)
        return slots if self.is_even else cast(Tensor, _Unpad.apply(slots, self.place))


@dataclass(frozen=True, slots=True)
class SharedPrefixBatch:
    """S sequences of G groups in one row of L tokens: first each group's common prefix, then each sequence's own rest.

    Example: the groups ([5, 6, 7], [5, 6, 8, 9]) and ([3, 4], [3, 2]) give the prefixes [5, 6] and [3] and
    input_ids [[5, 6, 3, 7, 8, 9, 4, 2]], position_ids [[0, 1, 0, 2, 2, 3, 1, 1]], last_index [3, 5, 6, 7].

    Attributes:
        input_ids: (1, L) long.
        position_ids: (1, L) long, positions in the sequence that a token belongs to.
        prefixes: The G prefixes; a group may have none.
        rests: The S rests, at least one token each.
        group_of_sequence: (S,) long.
        group_size: Sequences of each group; None where groups differ in it.
        last_index: (S,) long, place of each sequence's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    prefixes: RaggedRows
    rests: RaggedRows
    group_of_sequence: Tensor
    group_size: int | None
    last_index: Tensor

    @property
    def prefix_tokens(self) -> int:
        """How many of the L tokens are prefixes."""
        return self.input_ids.shape[1] - self.rests.place.shape[0]

    def of_each_sequence(self, of_groups: Tensor) -> Tensor:
        """(G, ...) -> (S, ...), a group's entry for each of its sequences."""
        if self.group_size is None:
            return of_groups.index_select(0, self.group_of_sequence)
        # Its gradient is a sum over a dimension; that of an indexed copy is a scattered one, many times slower.
        return of_groups.unsqueeze(1).expand(-1, self.group_size, *of_groups.shape[1:]).flatten(0, 1)


def shared_prefix_length(sequences: Sequence[TokenIds]) -> int:
    """Tokens that all sequences begin with, at most all but the last of the shortest: each keeps a token of its own."""
    longest = min(len(sequence) for sequence in sequences) - 1
    first = sequences[0][:longest]
    differs = np.zeros(longest, dtype=bool)
    for sequence in sequences[1:]:
        differs |= sequence[:longest] != first
    return int(differs.argmax()) if differs.any() else longest


def pack_groups(groups: Sequence[Sequence[TokenIds]], device: torch.device | str = "cpu") -> SharedPrefixBatch:
    """Packs groups of sequences, each group behind its common prefix.

    Args:
        groups: G groups of at least one array of at least one id.
        device: where the tensors end up.

    Raises:
        ValueError: there is no group, or a sequence without a token.
    """
    if not groups or not all(len(sequence) for group in groups for sequence in group):
        raise ValueError("groups are empty or hold a sequence without a token; leave them out")
    prefix_lengths = np.array([shared_prefix_length(group) for group in groups], dtype=np.int64)
    prefixes = [group[0][:length] for group, length in zip(groups, prefix_lengths, strict=True)]
    rests = [sequence[length:] for group, length in zip(groups, prefix_lengths, strict=True) for sequence in group]
    rest_lengths = np.array([len(rest) for rest in rests], dtype=np.int64)
    group_of_sequence = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    positions = [np.arange(length) for length in prefix_lengths]
    starts = prefix_lengths[group_of_sequence]
    positions += [start + np.arange(length) for start, length in zip(starts, rest_lengths, strict=True)]

    def to_device(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(device)

    return SharedPrefixBatch(
        input_ids=to_device(np.concatenate([*prefixes, *rests]))[None],
        position_ids=to_device(np.concatenate(positions))[None],
        prefixes=RaggedRows.of(prefix_lengths, device),
        rests=RaggedRows.of(rest_lengths, device),
        group_of_sequence=to_device(group_of_sequence),
        group_size=len(groups[0]) if len({len(group) for group in groups}) == 1 else None,
        last_index=to_device(prefix_lengths.sum() + np.cumsum(rest_lengths) - 1),
    )


class _Pad(torch.autograd.Function):
    """tokens[index], with a gradient that gathers too: every token has exactly one slot, so nothing is to be summed."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, index: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return tokens[index]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grad_outputs[0][place], None, None


class _Unpad(torch.autograd.Function):
    """slots[place], with a gradient of 0 at padding."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.slot_count = slots.shape[0]
        return slots[place]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        gradient: Tensor = grad_outputs[0]
        return gradient.new_zeros((ctx.slot_count, *gradient.shape[1:])).index_copy_(0, place, gradient), None
