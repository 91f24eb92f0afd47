"""Fits of gold reward over distance: known laws are found again, and so is where they peak."""

import math

import numpy as np
import pytest

from rlhf.evaluation.gold_proxy import CurveFit, curve_points, find_peak, fit_curve


def test_the_law_of_reinforcement_learning_is_found_again():
    kl = np.array([0.0, 1.0, 4.0, 9.0, 16.0, 25.0])
    distance = np.sqrt(kl)
    gold = 0.5 + distance * (1.2 - 0.8 * np.log(np.maximum(distance, 1e-300)))

    fit = fit_curve(kl, gold, "rl")

    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((0.5, 1.2, 0.8))
    # d/dd d (alpha - beta log d) = alpha - beta log d - beta is 0 at d = exp(1.5 - 1).
    assert fit.peak_distance(5.0) == pytest.approx(math.exp(0.5))
    np.testing.assert_allclose(fit.value(distance), gold)
    near = fit.value(np.array([math.exp(0.5) - 0.01, math.exp(0.5), math.exp(0.5) + 0.01]))
    assert near[1] > max(near[0], near[2])


def test_the_law_of_best_of_n_is_found_again():
    kl = np.array([0.0, 0.2, 0.6, 1.2, 1.8])
    distance = np.sqrt(kl)
    fit = fit_curve(kl, -1.0 + distance * (2.0 - 0.9 * distance), "best_of_n")
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((-1.0, 2.0, 0.9))
    assert fit.peak_distance(5.0) == pytest.approx(2.0 / 1.8)


def test_a_curve_that_is_not_bent_has_no_peak_and_one_that_falls_has_it_at_the_start():
    assert CurveFit("rl", 0.0, 1.0, 0.0).peak_distance(3.0) == math.inf
    assert CurveFit("best_of_n", 0.0, 1.0, -0.1).peak_distance(3.0) == math.inf
    assert CurveFit("best_of_n", 0.0, -1.0, 0.1).peak_distance(3.0) == 0.0
    assert CurveFit("rl", 0.0, -1.0, 0.0).peak_distance(3.0) == 0.0
    # It falls first and rises later: -d + d^2 / 2 is back at the start at d = 2.
    falls_first = CurveFit("best_of_n", 0.0, -1.0, -0.5)
    assert (falls_first.peak_distance(1.9), falls_first.peak_distance(2.1)) == (0.0, math.inf)


def run_of(peak_kl, *, noise, steps=60, furthest_kl=30.0, seed=0):
    """KL rises over a run, and gold peaks at a known KL."""
    kl = np.linspace(0.0, furthest_kl, steps)
    distance, beta = np.sqrt(kl), 1.0
    alpha = beta * (math.log(math.sqrt(peak_kl)) + 1.0)
    gold = distance * (alpha - beta * np.log(np.maximum(distance, 1e-9)))
    return kl, gold + noise * np.random.default_rng(seed).normal(size=steps)


def test_the_peak_of_a_noisy_run_lies_in_its_interval():
    covered = 0
    for trial in range(20):
        peak = find_peak(*run_of(9.0, noise=0.1, seed=trial), "rl", seed=trial)
        assert peak.kl_low is not None
        assert peak.kl_high is not None
        covered += peak.kl_low <= 9.0 <= peak.kl_high
        assert peak.is_passed
        assert peak.is_certain
        assert peak.lost > 0.2
    assert covered >= 16


def test_a_run_that_stops_before_the_peak_has_not_passed_it():
    peak = find_peak(*run_of(60.0, noise=0.01), "rl")
    assert peak.kl == pytest.approx(60.0, rel=0.2)
    assert not peak.is_passed
    assert not peak.is_certain
    assert peak.lost == 0.0


def test_noise_alone_gives_no_certain_peak():
    rng = np.random.default_rng(3)
    certain = [
        find_peak(np.linspace(0, 10, 20), rng.normal(size=20), "rl", seed=trial).is_certain for trial in range(20)
    ]
    assert sum(certain) <= 1


def test_few_points_have_a_peak_without_interval_and_too_few_none():
    kl, gold = run_of(9.0, noise=0.0, steps=6)
    peak = find_peak(kl, gold, "rl")
    assert peak.kl == pytest.approx(9.0)
    assert (peak.kl_low, peak.kl_high, peak.is_certain) == (None, None, False)
    with pytest.raises(ValueError, match="4 points are too few"):
        find_peak(kl, np.where(kl > 18, np.nan, gold), "rl")


def test_an_estimate_below_zero_counts_as_zero_and_the_drawn_curve_ends_at_the_last_point():
    kl, gold = np.array([-0.5, 0.0, 1.0, 4.0, 9.0]), np.array([0.0, 0.0, 1.0, 2.0, 3.0])
    fit = fit_curve(kl, gold, "best_of_n")
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((0.0, 1.0, 0.0), abs=1e-9)
    distances, values = curve_points(fit, 9.0, count=4)
    assert distances == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert values == pytest.approx([0.0, 1.0, 2.0, 3.0], abs=1e-9)
