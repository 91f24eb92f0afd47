import numpy as np
import pytest

from reward.baselines import (
    bag_of_words_scorer,
    baseline_scores,
    length_scorer,
    naive_bayes_scorer,
)
from reward.preferences import Comparison


def pair(better, worse):
    return Comparison("", (better, worse), ((0,), (1,)), "")


def test_length_learns_whether_longer_or_shorter_wins():
    longer, shorter = [pair("a b c", "d"), pair("a b", "c")], [pair("a", "b c"), pair("a", "b c d")]

    assert length_scorer(longer)(["x", "x y"]).tolist() == [1.0, 2.0]
    assert length_scorer(shorter)(["x", "x y"]).tolist() == [-1.0, -2.0]


def test_bag_of_words_finds_the_word_that_wins():
    train = [pair("fine food", "bad food"), pair("fine day", "bad day"), pair("a fine one", "the other one")]

    fine, bad, unknown = bag_of_words_scorer(train)(["fine", "bad", "zebra"])

    assert fine > 0 > bad
    assert unknown == 0


def test_bag_of_words_gives_each_comparison_the_same_say():
    many_pairs = Comparison("", ("up", "down", "down", "down", "down"), ((0,), (1, 2, 3, 4)), "")
    opposite = pair("down", "up")

    up, down = bag_of_words_scorer([many_pairs, opposite])(["up", "down"])

    assert up == pytest.approx(0, abs=1e-6)
    assert down == pytest.approx(0, abs=1e-6)


def test_naive_bayes_is_log_odds_with_add_one_smoothing():
    score = naive_bayes_scorer(["good film", "good good", "bad film"], [True, True, False])

    # Vocabulary: bad film good. Positive counts 0 1 3 (+1: 1 2 4 of 7), negative 1 1 0 (+1: 2 2 1 of 5).
    prior = np.log(2 / 3) - np.log(1 / 3)
    expected = [prior + np.log((4 / 7) / (1 / 5)), prior + np.log((1 / 7) / (2 / 5)), prior]
    np.testing.assert_allclose(score(["good", "Bad", "zebra"]), expected)


def test_baselines_score_responses_they_have_not_seen():
    train = [pair("fine food", "bad food"), pair("fine day", "bad day")]

    scores = baseline_scores(train, [pair("fine rain", "bad rain"), pair("fine sun", "bad sun")])

    assert scores["length"].tolist() == [2.0, 2.0, 2.0, 2.0]
    for name in ("bag_of_words", "naive_bayes"):
        assert scores[name][0] == scores[name][2] > scores[name][1] == scores[name][3]


def test_responses_without_a_word_are_all_alike_to_those_that_count_words():
    scores = baseline_scores([pair("!!", "?"), pair("...", "-")], [pair("!", "?!")])

    assert {name: values.tolist() for name, values in scores.items()} == {
        "length": [1.0, 1.0],
        "bag_of_words": [0.0, 0.0],
        "naive_bayes": [0.0, 0.0],
    }
