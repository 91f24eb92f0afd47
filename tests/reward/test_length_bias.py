import numpy as np
import pytest

from reward.length_bias import measure_length_bias, word_counts
from reward.preferences import Comparison


def comparison(*responses, ranking=((0,), (1,))):
    return Comparison("", responses, ranking, "")


def bias(comparisons, scores):
    return measure_length_bias(comparisons, np.array(scores), seed=0)


def test_words_are_what_white_space_parts():
    assert word_counts(["a b  c\nd", "", "one"]).tolist() == [4, 0, 1]


def test_correlations_are_those_worked_out_by_hand():
    # Words 1 3 | 2 6, scores 0 1 | 5 2. Overall: centred words -2 0 -1 3, centred scores -2 -1 3 0.
    found = bias([comparison("a", "a a a"), comparison("a a", "a a a a a a")], [0.0, 1.0, 5.0, 2.0])

    assert found.pearson == pytest.approx((4 + 0 - 3 + 0) / np.sqrt(14 * 14))
    # Ranks 1 3 2 4 and 1 2 4 3: squared distances 0 1 4 1, 1 - 6 * 6 / (4 * 15).
    assert found.spearman == pytest.approx(0.4)
    # Within: words -1 1 -2 2, scores -0.5 0.5 1.5 -1.5.
    assert found.pearson_within == pytest.approx((0.5 + 0.5 - 3 - 3) / np.sqrt(10 * 5))
    # Ranks within: words and scores agree in the first comparison, not in the second.
    assert found.spearman_within == pytest.approx(0.0)


def test_equal_lengths_within_a_comparison_rank_alike():
    tied = comparison("a", "b", "c d", ranking=((0,), (1,), (2,)))
    found = bias([tied], [1.0, 0.0, 2.0])

    # Ranks of the words 1.5 1.5 3, of the scores 2 1 3: centred -0.5 -0.5 1 and 0 -1 1.
    assert found.spearman_within == pytest.approx((0 + 0.5 + 1) / np.sqrt(1.5 * 2))


def test_the_model_may_like_length_more_than_people_do():
    pairs = [comparison("a b", "a"), comparison("a b c", "a"), comparison("a", "a b"), comparison("a", "b")]
    found = bias(pairs, [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 7.0, 0.0])

    assert found.unequal_pairs == 3
    assert found.longer_preferred == pytest.approx(2 / 3)
    assert found.longer_scored_higher == pytest.approx(1.0)
    assert found.excess is not None
    assert found.excess.value == pytest.approx(1 / 3)
    assert found.excess.finding == "undecided"


def test_where_lengths_or_scores_do_not_vary_nothing_is_claimed():
    same_length = bias([comparison("a", "b"), comparison("c", "d")], [1.0, 0.0, 2.0, 5.0])
    same_scores = bias([comparison("a", "b c", "d", ranking=((0,), (1,), (2,)))], [0.1, 0.1, 0.1])

    assert (same_length.pearson, same_length.spearman_within) == (None, None)
    assert (same_length.longer_preferred, same_length.unequal_pairs) == (None, 0)
    assert (same_scores.pearson, same_scores.pearson_within, same_scores.longer_scored_higher) == (None, None, 0.5)
