import numpy as np
import pytest

from reward.evaluation import score_pairs
from reward.preferences import Comparison
from reward.slices import by_length_difference, by_score_gap, by_value, other_sources_name


def pairs_with(gaps):
    comparisons = [Comparison("", ("a", "b"), ((0,), (1,)), "")] * len(gaps)
    return score_pairs(comparisons, np.stack([gaps, np.zeros(len(gaps))], axis=1).reshape(-1))


def table(slices):
    return [(found.name, found.pairs, found.accuracy) for found in slices]


def test_length_differences_are_cut_at_equal_length_and_at_their_median():
    # Words of the winner minus words of the loser: -5 -2 0 2 2 9, so that the median of those that differ is 2.
    words = np.array([1, 6, 3, 5, 4, 4, 6, 4, 5, 3, 10, 1])
    pairs = pairs_with(np.array([-1.0, 1.0, 1.0, 1.0, -1.0, 1.0]))

    assert table(by_length_difference(pairs, words)) == [
        ("< -2", 1, 0.0),
        ("-2 to -1", 1, 1.0),
        ("0", 1, 1.0),
        ("1 to 2", 2, 0.5),
        ("> 2", 1, 1.0),
    ]


def test_slices_without_a_pair_are_left_out():
    found = by_length_difference(pairs_with(np.array([1.0, -1.0])), np.array([3, 3, 7, 7]))

    assert table(found) == [("0", 2, 0.5)]


def test_score_gaps_are_cut_into_quarters_of_their_size_whatever_their_sign():
    found = by_score_gap(pairs_with(np.array([0.1, -0.2, 1.0, -1.5, 2.0, 3.0, 4.0, -8.0])))

    assert [slice.pairs for slice in found] == [2, 2, 2, 2]
    assert [slice.accuracy for slice in found] == [0.5, 0.5, 1.0, 0.5]
    assert [slice.name for slice in found] == ["to 0.2", "to 1.5", "to 3", "to 8"]


def test_equal_gaps_are_one_slice():
    assert table(by_score_gap(pairs_with(np.zeros(9)))) == [("0", 9, 0.5)]


def test_a_value_with_few_levels_has_a_slice_for_each():
    found = by_value(pairs_with(np.array([1.0, -1.0, 1.0, 1.0])), np.array([3.0, 1.0, 1.0, np.nan]))

    assert table(found) == [("1", 2, 0.5), ("3", 1, 1.0)]


def test_names_are_slices_from_the_largest_and_small_ones_are_put_together():
    names = ["b", "a", "a"] + [f"tiny-{index}" for index in range(12)]
    found = by_value(pairs_with(np.ones(15)), np.array(names, dtype=object), most=3)

    assert [(slice.name, slice.pairs) for slice in found] == [("a", 2), ("b", 1), (other_sources_name(12), 12)]


def test_intervals_respect_the_clusters_of_the_slice():
    ranked = Comparison("p", ("a", "b", "c"), ((0,), (1, 2)), "")
    pairs = score_pairs([ranked, ranked], np.array([1.0, 0, 0, 1.0, 0, 0]))

    (found,) = by_score_gap(pairs)

    assert (found.accuracy_low, found.accuracy_high) == (0.0, 1.0)
    assert found.pairs == 4


@pytest.mark.parametrize("value", [np.full(2, np.nan), np.array([None, None], dtype=object)])
def test_where_nothing_is_known_there_are_no_slices(value):
    assert by_value(pairs_with(np.ones(2)), value) == []
