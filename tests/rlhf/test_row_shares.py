"""Who computes which rows, by hand."""

import pytest

from rlhf.row_shares import balance, share_rows
from rlhf.runtime.distributed import ALONE, Ranks


@pytest.mark.parametrize(
    ("lengths", "shares", "expected"),
    [
        # 5 | 4, then 3 to the second (4 < 5), then 1 to the first (5 < 7).
        ([5, 1, 3, 4], 2, [[0, 1], [2, 3]]),
        ([2, 2, 2], 2, [[0, 2], [1]]),
        ([7], 3, [[0], [], []]),
        ([9, 4, 4, 1], 1, [[0, 1, 2, 3]]),
        ([], 2, [[], []]),
    ],
)
def test_rows_are_divided_by_tokens(lengths: list[int], shares: int, expected: list[list[int]]) -> None:
    assert balance(lengths, shares) == expected


def test_every_rank_makes_as_many_passes_as_the_one_with_the_most() -> None:
    lengths = [6, 3, 3, 2]
    # Six tokens a pass. Rank 0 has rows 0 and 3 (6 + 2) in two passes, rank 1 has rows 1 and 2 in one.
    first, second = (share_rows(lengths, Ranks(i, 2), token_budget=6, counts_padding=False) for i in (0, 1))
    assert (first.rows, first.groups, first.ghosts) == ([0, 3], [[0], [3]], 0)
    assert (second.rows, second.groups, second.ghosts) == ([1, 2], [[1, 2]], 1)
    assert first.ghost_row == second.ghost_row == 3


def test_a_rank_without_rows_makes_passes_too() -> None:
    share = share_rows([4], Ranks(2, 3), token_budget=8, counts_padding=True)
    assert (share.rows, share.groups, share.ghosts, share.ghost_row) == ([], [], 1, 0)


def test_one_rank_computes_everything_and_no_ghost() -> None:
    share = share_rows([2, 5, 3], ALONE, token_budget=5, counts_padding=True)
    assert (share.rows, share.groups, share.ghosts) == ([0, 1, 2], [[1], [2], [0]], 0)
    assert share_rows([], ALONE, token_budget=5, counts_padding=True).groups == []
