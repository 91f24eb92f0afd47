"""Which rows of a batch a rank computes, and in which micro-batches: a function of lengths that every rank knows.

Owns the division only. With one rank it is `policies.sequences.micro_batches`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from policies.sequences import micro_batches
from rlhf.runtime.distributed import Ranks


@dataclass(frozen=True, slots=True)
class RowShare:
    """The part of one rank.

    Attributes:
        rows: Indices of its rows, in the order of the batch.
        groups: The same indices as micro-batches.
        ghosts: Micro-batches of zero weight after those: every rank makes as many passes as the one with the most,
            because the passes themselves communicate where layers are sharded.
        ghost_row: A row to make them of, the shortest of the batch.
    """

    rows: list[int]
    groups: list[list[int]]
    ghosts: int
    ghost_row: int


def share_rows(lengths: Sequence[int], ranks: Ranks, *, token_budget: int, counts_padding: bool) -> RowShare:
    """The share of `ranks.index` in a batch.

    Args:
        lengths: Tokens of each row, prompt and response.
        ranks: This rank among all.
        token_budget: Tokens of one micro-batch (see `micro_batches`).
        counts_padding: Whether padding counts as tokens.
    """
    divided = [
        _groups(lengths, rows, token_budget, counts_padding=counts_padding) for rows in balance(lengths, ranks.count)
    ]
    own = divided[ranks.index]
    return RowShare(
        rows=sorted(index for group in own for index in group),
        groups=own,
        ghosts=max(len(groups) for groups in divided) - len(own),
        ghost_row=min(range(len(lengths)), key=lambda index: lengths[index], default=0),
    )


def balance(lengths: Sequence[int], shares: int) -> list[list[int]]:
    """Indices in shares of nearly equal tokens: longest first, each to the share with the fewest tokens so far.

    (Graham 1969: the largest share has at most 4/3 of the tokens that the best division has.) A share is empty where
    there are fewer rows than shares. Example: lengths 5, 1, 3, 4 in two shares are [0, 1] and [2, 3].
    """
    tokens = [0] * shares
    rows: list[list[int]] = [[] for _ in range(shares)]
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        emptiest = tokens.index(min(tokens))
        rows[emptiest].append(index)
        tokens[emptiest] += lengths[index]
    return [sorted(share) for share in rows]


def _groups(lengths: Sequence[int], rows: Sequence[int], token_budget: int, *, counts_padding: bool) -> list[list[int]]:
    local = micro_batches([lengths[index] for index in rows], token_budget, counts_padding=counts_padding)
    return [[rows[index] for index in group] for group in local]
