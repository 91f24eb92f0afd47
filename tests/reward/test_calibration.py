import numpy as np
import pytest

from reward.calibration import fit_temperature, measure_calibration
from reward.evaluation import ScoredPairs, score_pairs
from reward.preferences import Comparison

PAIR = Comparison("", ("a", "b"), ((0,), (1,)), "")


def pairs_with(gaps) -> ScoredPairs:
    gaps = np.asarray(gaps, dtype=float)
    return score_pairs([PAIR] * len(gaps), np.stack([gaps, np.zeros_like(gaps)], axis=1).reshape(-1))


def sampled(true_temperature, count, seed=0):
    """Gaps of a model whose sigmoid(gap / true_temperature) is the probability that it is right."""
    rng = np.random.default_rng(seed)
    size = np.abs(rng.normal(0, 2.0, count))
    right = rng.random(count) < 1 / (1 + np.exp(-size / true_temperature))
    return pairs_with(np.where(right, size, -size))


def test_the_error_is_the_mean_distance_of_confidence_from_accuracy_over_bins():
    # 20 pairs with confidence sigmoid(log 3) = 0.75, 12 of them right; 20 with sigmoid(log 9) = 0.9, 19 of them right.
    gaps = np.log(3.0) * np.array([1] * 12 + [-1] * 8), np.log(9.0) * np.array([1] * 19 + [-1])

    result = measure_calibration(pairs_with(np.concatenate(gaps)), seed=0)

    assert [(found.confidence, found.accuracy, found.pairs) for found in result.bins] == [
        (pytest.approx(0.75), pytest.approx(0.6), 20),
        (pytest.approx(0.9), pytest.approx(0.95), 20),
    ]
    assert result.error == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)
    assert result.overconfidence == pytest.approx(0.5 * 0.15 - 0.5 * 0.05)


def test_each_comparison_has_the_same_say():
    # The triple's two pairs are right with confidence 0.8; the pair is wrong with confidence 0.8: half, not two thirds.
    triple = Comparison("", ("a", "b", "c"), ((0,), (1, 2)), "")
    gap = np.log(4.0)

    result = measure_calibration(score_pairs([triple, PAIR], np.array([gap, 0, 0, 0, gap])), seed=0)

    assert result.error == pytest.approx(0.3)
    assert [found.accuracy for found in result.bins] == [pytest.approx(0.5)]


def test_a_calibrated_model_shows_the_error_of_sampling_and_its_interval_starts_at_zero():
    result = measure_calibration(sampled(1.0, 1000), seed=0)

    assert result.error == pytest.approx(result.error_of_sampling, abs=0.015)
    assert result.error_low == 0.0
    assert result.error_high < 0.05


def test_an_overconfident_model_is_found_out_and_its_temperature_mends_it():
    pairs = sampled(3.0, 1000)

    before, after = (measure_calibration(pairs, temperature=temperature, seed=0) for temperature in (1.0, 3.0))

    assert before.error_low > 0.1
    assert after.error_low == 0.0
    assert all(found.confidence > found.accuracy for found in before.bins[2:])


def test_bins_hold_about_the_same_number_of_pairs_and_no_fewer_than_twenty_where_there_are_as_many():
    sizes = [found.pairs for found in measure_calibration(sampled(1.0, 130), seed=0).bins]

    assert len(sizes) == 6
    assert max(sizes) - min(sizes) <= 1
    assert len(measure_calibration(sampled(1.0, 3), seed=0).bins) == 1


def test_scores_that_are_all_equal_are_a_coin_and_say_so():
    result = measure_calibration(pairs_with(np.zeros(50)), seed=0)

    assert result.error == 0.0
    assert [(found.confidence, found.accuracy, found.pairs) for found in result.bins] == [(0.5, 0.5, 50)]


def test_the_true_error_lies_in_the_interval_about_as_often_as_claimed():
    covered = 0
    for seed in range(100):
        pairs = sampled(2.0, 400, seed)
        result = measure_calibration(pairs, seed=seed, resamples=300)
        size = np.abs(pairs.gap)
        distance = 1 / (1 + np.exp(-size)) - 1 / (1 + np.exp(-size / 2.0))
        covered += result.error_low <= distance.mean() <= result.error_high
    assert covered >= 90


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 4.0])
def test_the_temperature_that_made_the_labels_is_recovered(true_temperature):
    assert fit_temperature(sampled(true_temperature, 4000)).value == pytest.approx(true_temperature, rel=0.12)


def test_the_temperature_minimises_the_loss():
    # Gap 2 right three times and wrong once: d/dT = 0 where sigmoid(2 / T) = 3/4, so T = 2 / log 3.
    fitted = fit_temperature(pairs_with([2.0, 2.0, 2.0, -2.0]))

    assert fitted.value == pytest.approx(2 / np.log(3), rel=1e-4)
    assert not fitted.at_bound


@pytest.mark.parametrize(("gaps", "bound"), [([1.0, 2.0], 0.01), ([-1.0, -2.0], 100.0), ([0.0, 0.0], 1.0)])
def test_where_no_temperature_is_best_the_bound_is_taken_and_said(gaps, bound):
    fitted = fit_temperature(pairs_with(gaps))

    assert fitted.value == pytest.approx(bound, rel=1e-3)
    assert fitted.at_bound
