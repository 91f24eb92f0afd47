"""Which documents share a sequence: first fit, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.sequence_filling import OPEN_SEQUENCES, fill_sequences


@pytest.mark.parametrize(("lengths", "groups"), [
    ([5, 4, 3, 2], [[0, 3], [1, 2]]),
    ([7, 7], [[0], [1]]),
    ([1, 6, 2, 5, 1], [[0, 1], [2, 3], [4]]),
    ([], []),
])  # fmt: skip
def test_each_document_goes_into_the_first_sequence_with_room(lengths: list[int], groups: list[list[int]]) -> None:
    assert fill_sequences(lengths, 7) == groups


def test_only_so_many_sequences_stay_open() -> None:
    lengths = [6] * (OPEN_SEQUENCES + 1) + [1] * (OPEN_SEQUENCES + 1)
    groups = fill_sequences(lengths, 7)
    assert groups[0] == [0], "the oldest was closed before a document came that fits"
    assert [len(group) for group in groups[1:-1]] == [2] * OPEN_SEQUENCES


@given(st.lists(st.integers(1, 50), max_size=200))
def test_every_document_is_in_one_sequence_and_none_is_overfull(lengths: list[int]) -> None:
    groups = fill_sequences(lengths, 50)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in group) <= 50 for group in groups)
