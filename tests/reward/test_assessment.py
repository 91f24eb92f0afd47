import dataclasses
import json
import math

import numpy as np
import pytest

from reward.assessment import assess
from reward.preferences import Comparison


def pairs(count, origin=None):
    """Pairs in which the preferred response is longer every second time."""
    texts = [("fine", "bad one") if number % 2 else ("a fine one", "bad") for number in range(count)]
    return [Comparison(f"prompt {number}", both, ((0,), (1,)), "", origin=origin) for number, both in enumerate(texts)]


def ranking(size):
    return Comparison(
        f"rank {size}", tuple(f"word {'x ' * index}" for index in range(size)), ((3,), (0, 1), (2, 4, 5)), ""
    )


def scores_for(comparisons, seed=0):
    return np.random.default_rng(seed).normal(size=sum(len(one.responses) for one in comparisons))


def assessed(comparisons, scores=None, temperature=None):
    scores = scores_for(comparisons) if scores is None else scores
    baselines = {"length": scores_for(comparisons, 1), "naive_bayes": np.zeros(len(scores))}
    return assess(comparisons, scores, baselines=baselines, temperature=temperature, seed=0)


def test_the_same_scores_give_the_numbers_of_each_measurement():
    comparisons = pairs(30)
    found = assessed(comparisons, np.tile([1.0, 0.0], 30))

    assert found.accuracy.accuracy == 1.0
    assert found.slices["length_difference"][0].accuracy == 1.0
    assert found.calibration.error == pytest.approx(1 / (1 + math.e))
    assert found.baselines["naive_bayes"].accuracy == 0.5
    assert found.baselines["naive_bayes"].lead.value == 0.5
    assert found.baselines["naive_bayes"].lead.finding == "above"
    assert found.length.unequal_pairs == 30


def test_calibration_with_the_fitted_temperature_stands_beside_that_without():
    found = assessed(pairs(30), np.tile([4.0, 0.0], 30), temperature=8.0)

    assert found.calibration.temperature == 1.0
    assert found.calibration_scaled is not None
    assert found.calibration_scaled.bins[0].confidence == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert assessed(pairs(30)).calibration_scaled is None


def test_sources_are_told_apart_where_rows_name_them():
    assert assessed(pairs(8)).slices["source"] == []
    both = assessed([*pairs(6, "forum"), *pairs(3, "lab"), *pairs(2)]).slices["source"]
    assert [(found.name, found.pairs) for found in both] == [("forum", 6), ("lab", 3)]


@pytest.mark.parametrize(
    "comparisons",
    [
        pairs(3),
        pairs(1),
        [ranking(6)] * 4,
        [ranking(6), *pairs(2)],
        pairs(12, "one"),
        [Comparison("p", ("a", "b"), ((0,), (1,)), "")] * 12,
        [Comparison("p", ("a", "b"), ((0,), (1,)), "", strengths=(x, 0.0), win_probability=0.8) for x in range(1, 12)],
        [Comparison("", ("!!", "?"), ((1,), (0,)), "")] * 5,
    ],
    ids=["three", "one", "six ranked with ties", "mixed", "one source", "same prompt and length", "votes", "no words"],
)
@pytest.mark.parametrize("constant", [False, True])
def test_unusual_held_out_splits_are_measured_all_the_same(comparisons, constant):
    size = sum(len(one.responses) for one in comparisons)
    found = assessed(comparisons, np.zeros(size) if constant else None, temperature=2.0)

    text = json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert '"accuracy"' in text
    assert found.accuracy.accuracy_low <= found.accuracy.accuracy <= found.accuracy.accuracy_high
    assert found.calibration.error_low <= found.calibration.error <= found.calibration.error_high
    assert sum(part.pairs for part in found.slices["length_difference"]) == found.accuracy.pairs
    assert sum(part.pairs for part in found.slices["score_gap"]) == found.accuracy.pairs
