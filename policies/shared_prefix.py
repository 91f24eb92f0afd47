"""Sequences with common beginnings -> one packed row in which every beginning stands once.

Owns the layout: which token stands where, at which position, and what it sees. The attention that computes it is
`policies.shared_prefix_attention`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from policies.packed_rows import PackedRows
from policies.sequences import TokenIds


@dataclass(frozen=True, slots=True)
class SharedPrefixBatch:
    """S sequences of G groups in one row of L tokens: first each group's common prefix, then each sequence's own rest.

    Where lengths differ, some tokens of padding may stand behind a prefix or a rest; no other token sees them.

    Example: the groups ([5, 6, 7], [5, 6, 8, 9]) and ([3, 4], [3, 2]) give the prefixes [5, 6] and [3] and
    input_ids [[5, 6, 3, 7, 8, 9, 4, 2]], position_ids [[0, 1, 0, 2, 2, 3, 1, 1]], last_index [3, 5, 6, 7].

    Attributes:
        input_ids: (1, L) long.
        position_ids: (1, L) long, positions in the sequence that a token belongs to.
        prefixes: The G prefixes, of which one may be empty.
        rests: The S rests, at least one token each.
        prefix_lengths: (G,) long.
        group_of_sequence: (S,) long.
        group_size: Sequences of each group; None where groups differ in it.
        last_index: (S,) long, place of each sequence's last token.
    """

    input_ids: Tensor
    position_ids: Tensor
    prefixes: PackedRows
    rests: PackedRows
    prefix_lengths: Tensor
    group_of_sequence: Tensor
    group_size: int | None
    last_index: Tensor
    _masks: dict[torch.dtype, Tensor] = field(default_factory=dict, repr=False)

    @property
    def parts(self) -> tuple[int, int]:
        """How many of the L tokens are prefixes, and how many rests."""
        return self.prefixes.token_count, self.rests.token_count

    @property
    def longest(self) -> int:
        """P + R, most tokens that a query sees."""
        return self.prefixes.width + self.rests.width

    def rest_mask(self, dtype: torch.dtype) -> Tensor:
        """(S or 1, R, P + R) additive mask of the rests: their prefix without its padding, themselves causally."""
        if dtype not in self._masks:
            device = self.input_ids.device
            columns = torch.arange(self.prefixes.width, device=device)
            rows = torch.arange(self.rests.width, device=device)
            is_even = bool((self.prefix_lengths == self.prefixes.width).all())
            lengths = self.prefix_lengths[:1] if is_even else self.prefix_lengths[self.group_of_sequence]
            prefix = (columns < lengths[:, None])[:, None, :].expand(-1, len(rows), -1)
            own = (rows <= rows[:, None]).expand(len(lengths), -1, -1)
            hidden = ~torch.cat([prefix, own], dim=2)
            self._masks[dtype] = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
        return self._masks[dtype]

    def last_mask(self, dtype: torch.dtype) -> Tensor:
        """(S, 1, P + R) additive mask of the sequences' last tokens: the rows of `rest_mask` that are theirs."""
        rows = self.position_ids[0, self.last_index] - self.prefix_lengths[self.group_of_sequence]
        mask = self.rest_mask(dtype).expand(len(rows), -1, -1)
        return mask.gather(1, rows[:, None, None].expand(-1, 1, mask.shape[-1]))

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
    group_of_sequence = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    parts = [
        _Padded.of(prefixes, np.zeros(len(groups), np.int64)),
        _Padded.of(rests, prefix_lengths[group_of_sequence]),
    ]

    def to_device(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    layouts = [PackedRows.of(to_device(part.mask)) for part in parts]
    packed = [
        tuple(rows.pack(to_device(array)) for array in (part.ids, part.positions))
        for rows, part in zip(layouts, parts, strict=True)
    ]
    ids, positions = (torch.cat(of_parts, dim=1) for of_parts in zip(*packed, strict=True))
    last = np.arange(len(rests)) * layouts[1].tokens + [len(rest) - 1 for rest in rests]
    return SharedPrefixBatch(
        input_ids=ids,
        position_ids=positions,
        prefixes=layouts[0],
        rests=layouts[1],
        prefix_lengths=to_device(prefix_lengths),
        group_of_sequence=to_device(group_of_sequence),
        group_size=len(groups[0]) if len({len(group) for group in groups}) == 1 else None,
        last_index=layouts[0].token_count + layouts[1].packed_index(to_device(last)),
    )


class _Padded(NamedTuple):
    """(N, W) long ids and positions, 0 at padding, and the bool mask of the tokens."""

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    mask: NDArray[np.bool_]

    @classmethod
    def of(cls, rows: Sequence[TokenIds], starts: NDArray[np.int64]) -> "_Padded":
        columns = np.arange(max(len(row) for row in rows))
        mask = columns < np.array([len(row) for row in rows])[:, None]
        ids = np.zeros(mask.shape, np.int64)
        ids[mask] = np.concatenate(rows)
        return cls(ids, np.where(mask, starts[:, None] + columns, 0), mask)
