"""The length-controlled win rate: values by hand, and truth that a simulation knows."""

import numpy as np
import pytest

from rlhf.evaluation.length_control import length_controlled_win_rate


def ids(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def controlled(outcomes, differences, prompt_ids=None, **options):
    settings = {"resamples": 100, "seed": 0} | options
    names = ids(len(outcomes)) if prompt_ids is None else prompt_ids
    return length_controlled_win_rate(np.array(outcomes, float), np.array(differences, float), names, **settings)


def test_two_lengths_give_the_mean_of_their_log_odds():
    # 4 of 5 won where longer, 1 of 2 where shorter. Both coefficients fit both groups exactly, and the groups lie at
    # tanh(+-1), so theta = (log 4 + log 1) / 2 = log 2: two wins in three at equal length, 65 % as counted.
    outcomes = ([1.0] * 4 + [0.0]) * 400 + [1.0, 0.0] * 1000
    differences = [7.0] * 2000 + [-7.0] * 2000

    found = controlled(outcomes, differences)

    assert np.mean(outcomes) == pytest.approx(0.65)
    assert found.mean == pytest.approx(2 / 3, abs=2e-4)


def test_a_model_that_wins_by_length_alone_does_not_win():
    rng = np.random.default_rng(0)
    differences = rng.normal(10.0, 8.0, size=1500)
    chance = 1 / (1 + np.exp(-2.0 * np.tanh(differences / differences.std())))
    outcomes = (rng.random(1500) < chance).astype(float)

    found = controlled(outcomes, differences)

    assert outcomes.mean() > 0.75
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.2


def test_the_interval_covers_the_true_effect_at_about_its_nominal_rate():
    truth, covered = 1 / (1 + np.exp(-0.4)), 0
    for trial in range(50):
        rng = np.random.default_rng(trial)
        differences = rng.normal(5.0, 10.0, size=100)
        logits = 0.4 + 1.0 * np.tanh(differences / differences.std())
        outcomes = (rng.random(100) < 1 / (1 + np.exp(-logits))).astype(float)
        found = controlled(outcomes, differences, resamples=100, seed=trial)
        covered += found.low <= truth <= found.high
    assert 44 <= covered <= 50


def test_equal_lengths_leave_the_win_rate_as_it_is_and_a_tie_is_half_a_win():
    found = controlled([1.0, 0.5, 0.5, 1.0] * 200, [3.0] * 800)
    assert found.mean == pytest.approx(0.75, abs=1e-3)


def test_a_model_that_always_wins_has_a_finite_estimate_below_one():
    found = controlled([1.0] * 50, np.linspace(-5, 5, 50))
    assert 0.9 < found.mean < 1.0
    assert 0.9 < found.low <= found.high < 1.0


def test_every_prompt_weighs_once_and_lost_pairs_are_left_out():
    found = controlled([1.0, 1.0, 1.0, np.nan, 0.0], [0.0, 0.0, 0.0, 50.0, 0.0], ["a", "a", "a", "c", "b"])
    assert found.mean == pytest.approx(0.5)


def test_the_same_seed_gives_the_same_interval_and_no_outcome_is_an_error():
    outcomes, differences = [1.0, 0.0, 1.0, 1.0] * 10, [1.0, 2.0, -3.0, 4.0] * 10
    assert controlled(outcomes, differences, seed=1) == controlled(outcomes, differences, seed=1)
    assert controlled(outcomes, differences, seed=1) != controlled(outcomes, differences, seed=2)
    with pytest.raises(ValueError, match="at least one"):
        controlled([np.nan], [1.0])
