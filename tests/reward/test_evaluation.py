import numpy as np
import pytest
import torch

from reward.evaluation import bootstrap_interval, evaluate_scores
from reward.preferences import Comparison
from rlhf.algorithms.preference_losses import ranked_pairs_loss

PAIR = Comparison("", ("a", "b"), ((0,), (1,)), "")
RANKED = Comparison("", ("c", "d", "e"), ((2,), (0, 1)), "")
SCORES = np.array([1.0, 3.0, 0.5, -1.0, 0.5])
"""The pair is wrong by 2; of the ranking's pairs e-c ties and e-d leads by 1.5."""


def test_accuracy_counts_a_tie_one_half_and_averages_over_comparisons():
    result = evaluate_scores([PAIR, RANKED], SCORES)

    assert result.accuracy == pytest.approx((0.0 + (0.5 + 1.0) / 2) / 2)
    assert result.margin == pytest.approx((-2.0 + (0.0 + 1.5) / 2) / 2)
    assert result.loss == pytest.approx((np.log1p(np.exp(2.0)) + (np.log(2) + np.log1p(np.exp(-1.5))) / 2) / 2)
    assert (result.comparisons, result.pairs) == (2, 3)


def test_the_numbers_are_those_of_the_loss_that_trains():
    result = evaluate_scores([PAIR, RANKED], SCORES)

    loss, metrics = ranked_pairs_loss(
        torch.tensor(SCORES),
        torch.tensor([0, 4, 4]),
        torch.tensor([1, 2, 3]),
        torch.tensor([0, 1, 1]),
        group_count=2,
    )

    assert result.loss == pytest.approx(loss.item())
    assert result.accuracy == pytest.approx(metrics["accuracy"].item())
    assert result.margin == pytest.approx(metrics["margin"].item())


def test_the_interval_is_that_of_the_comparisons_not_of_their_pairs():
    many_pairs = Comparison("", ("a", "b", "c", "d"), ((0, 1), (2, 3)), "")
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(100)[:, None] < 0.7, [[1, 1, 0, 0]], [[0, 0, 1, 1]]).reshape(-1)

    result = evaluate_scores([many_pairs] * 100, scores)

    error = np.sqrt(result.accuracy * (1 - result.accuracy) / 100)
    assert result.accuracy_high - result.accuracy_low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert result.accuracy_low < result.accuracy < result.accuracy_high


def test_the_interval_of_certain_values_is_a_point():
    assert bootstrap_interval(np.ones(7), seed=0) == (1.0, 1.0)


@pytest.mark.parametrize(("comparisons", "scores"), [([], []), ([PAIR], [1.0]), ([PAIR], [1.0, 2.0, 3.0])])
def test_scores_that_do_not_fit_the_responses_are_refused(comparisons, scores):
    with pytest.raises(ValueError, match="one score for each response"):
        evaluate_scores(comparisons, np.array(scores))
