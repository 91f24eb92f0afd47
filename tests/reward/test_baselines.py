import gzip
import json

import numpy as np
import pytest

from reward.baselines import (
    bag_of_words_scorer,
    evaluate_baselines,
    length_scorer,
    naive_bayes_judge,
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


def test_baselines_are_measured_on_comparisons_they_have_not_seen():
    train = [pair("fine food", "bad food"), pair("fine day", "bad day")]
    held_out = [pair("fine rain", "bad rain"), pair("fine sun", "bad sun")]

    results = evaluate_baselines(train, held_out)

    accuracies = {name: result.accuracy for name, result in results.items()}
    assert accuracies == {"length": 0.5, "bag_of_words": 1.0, "naive_bayes": 1.0}


@pytest.fixture
def labelled_file(tmp_path):
    rows = [{"text": "good", "label": 1}, {"text": "bad", "label": 0}] * 2
    rows += [{"text": "bad", "label": 1}, {"text": "good", "label": 0}] * 2
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


@pytest.mark.parametrize(("data", "rows"), [("{}", ":50%"), ("{}[:50%]", "all"), ("{}[:4]", "all")])
def test_the_judge_is_trained_on_the_slice_it_is_given(labelled_file, data, rows):
    good, bad = naive_bayes_judge(["", ""], ["so good", "so bad"], data=data.format(labelled_file), rows=rows)

    assert good > 0 > bad


def test_the_other_half_of_the_file_can_say_the_opposite(labelled_file):
    good, bad = naive_bayes_judge(["", ""], ["good", "bad"], data=labelled_file, rows="50%:")

    assert good < 0 < bad


@pytest.mark.parametrize(
    ("data", "rows", "message"),
    [
        ("missing.jsonl", "all", "no such"),
        ("{}", "first half", "is no slice"),
        ("{}[:1]", "all", "one label"),
        ("{}[8:]", "all", "no usable row"),
    ],
)
def test_a_judge_that_cannot_be_trained_is_refused(labelled_file, data, rows, message):
    with pytest.raises(ValueError, match=message):
        naive_bayes_judge([""], ["x"], data=data.format(labelled_file), rows=rows)
