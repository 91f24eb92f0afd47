import numpy as np
import pytest
import torch

from reward.evaluation import accuracy_difference, evaluate_scores, score_pairs
from reward.preferences import Comparison
from rlhf.algorithms.preference_losses import ranked_pairs_loss

PAIR = Comparison("", ("a", "b"), ((0,), (1,)), "")
RANKED = Comparison("", ("c", "d", "e"), ((2,), (0, 1)), "")
SCORES = np.array([1.0, 3.0, 0.5, -1.0, 0.5])
"""The pair is wrong by 2; of the ranking's pairs e-c ties and e-d leads by 1.5."""


def test_every_pair_knows_its_gap_its_say_and_where_it_came_from():
    pairs = score_pairs([PAIR, RANKED], SCORES)

    assert pairs.gap.tolist() == [-2.0, 0.0, 1.5]
    assert pairs.correct.tolist() == [0.0, 0.5, 1.0]
    assert pairs.weight.tolist() == [1.0, 0.5, 0.5]
    assert pairs.cluster.tolist() == [0, 1, 1]
    assert (pairs.winner.tolist(), pairs.loser.tolist()) == ([0, 4, 4], [1, 2, 3])


def test_a_label_that_is_a_share_of_votes_costs_the_cross_entropy():
    votes = Comparison("", ("a", "b"), ((0,), (1,)), "", win_probability=0.75)

    pairs = score_pairs([votes], np.array([2.0, 0.5]))

    expected = 0.75 * np.log1p(np.exp(-1.5)) + 0.25 * np.log1p(np.exp(1.5))
    assert pairs.loss() == pytest.approx(expected)
    assert pairs.loss(temperature=1.5) == pytest.approx(0.75 * np.log1p(np.exp(-1.0)) + 0.25 * np.log1p(np.exp(1.0)))
    assert pairs.agreement.tolist() == [0.75]
    assert score_pairs([votes], np.array([0.0, 1.0])).agreement.tolist() == [0.25]
    assert score_pairs([votes], np.array([1.0, 1.0])).agreement.tolist() == [0.5]


def test_the_strength_of_a_pair_is_the_difference_of_its_labels_where_they_are_known():
    rated = Comparison("", ("a", "b", "c"), ((2,), (0,), (1,)), "", strengths=(3.0, 1.0, 7.0))

    pairs = score_pairs([PAIR, rated], np.zeros(5))

    np.testing.assert_array_equal(pairs.strength, [np.nan, 4.0, 6.0, 2.0])


def test_a_comparison_of_ties_alone_says_nothing():
    tied = Comparison("", ("x", "y"), ((0, 1),), "")

    assert score_pairs([tied, PAIR], np.array([5.0, 6.0, 1.0, 0.0])).gap.tolist() == [1.0]
    assert score_pairs([tied, PAIR], np.zeros(4)).cluster.tolist() == [0]
    with pytest.raises(ValueError, match="all 1 comparisons are ties"):
        score_pairs([tied], np.zeros(2))


def test_some_of_the_pairs_keep_their_weights_and_count_their_prompts_anew():
    part = score_pairs([PAIR, RANKED], SCORES).where(np.array([False, False, True]))

    assert (part.gap.tolist(), part.weight.tolist(), part.cluster.tolist()) == ([1.5], [0.5], [0])


def test_comparisons_of_one_prompt_belong_together_and_those_without_a_prompt_do_not():
    named = [Comparison(prompt, ("a", "b"), ((0,), (1,)), "") for prompt in ("p", "", "q", "p", "")]

    assert score_pairs(named, np.zeros(10)).cluster.tolist() == [0, 1, 2, 0, 3]


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


def test_three_pairs_that_are_all_right_are_no_proof():
    result = evaluate_scores([PAIR] * 3, np.array([1.0, 0.0] * 3))

    assert result.accuracy == 1.0
    assert result.accuracy_low < 0.5


def test_the_difference_of_two_models_is_judged_pair_by_pair():
    """Both are right in about 60 %, but on the same pairs; one is right in four more. Unpaired, that drowns."""
    rng = np.random.default_rng(0)
    right = rng.random(200) < 0.6
    better = right.copy()
    better[np.flatnonzero(~right)[:12]] = True

    difference = accuracy_difference([PAIR] * 200, scores_that_are(better), scores_that_are(right), seed=0)

    assert difference.value == pytest.approx(12 / 200)
    spread = np.sqrt(0.06 * 0.94 / 200)
    assert difference.low == pytest.approx(0.06 - 1.96 * spread, abs=0.01)
    assert difference.high == pytest.approx(0.06 + 1.96 * spread, abs=0.01)
    assert difference.finding == "above"


def scores_that_are(right):
    return np.where(np.asarray(right)[:, None], [[1.0, 0.0]], [[0.0, 1.0]]).reshape(-1)


@pytest.mark.parametrize(
    ("right", "other", "finding"),
    [
        ([True] * 40, [True, False] * 20, "above"),
        ([True, False] * 20, [True] * 40, "below"),
        ([True, False] * 20, [False, True] * 20, "undecided"),
        ([True] * 9, [False] * 9, "undecided"),
    ],
    ids=["above", "below", "undecided", "too few to tell"],
)
def test_a_difference_is_found_only_where_its_interval_is_beside_zero_and_there_are_enough(right, other, finding):
    difference = accuracy_difference([PAIR] * len(right), scores_that_are(right), scores_that_are(other), seed=0)

    assert difference.finding == finding


@pytest.mark.parametrize(("comparisons", "scores"), [([], []), ([PAIR], [1.0]), ([PAIR], [1.0, 2.0, 3.0])])
def test_scores_that_do_not_fit_the_responses_are_refused(comparisons, scores):
    with pytest.raises(ValueError, match="one score for each response"):
        evaluate_scores(comparisons, np.array(scores))


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="1 of 2 scores"):
        evaluate_scores([PAIR], np.array([1.0, np.nan]))
