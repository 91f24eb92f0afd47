"""The win rate and its interval."""

import numpy as np
import pytest

from rlhf.evaluation import win_rate


def test_ties_count_half_and_lost_prompts_are_left_out() -> None:
    candidate = np.array([1.0, 2.0, 0.0, np.nan, 5.0])
    baseline = np.array([0.0, 2.0, 1.0, 9.0, 4.0])
    assert win_rate(candidate, baseline, resamples=200, seed=0).rate == pytest.approx((1 + 0.5 + 0 + 1) / 4)


def test_the_interval_covers_the_truth_at_about_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        candidate, baseline = (rng.random(100) < 0.7).astype(float), np.full(100, 0.5)
        result = win_rate(candidate, baseline, resamples=400, seed=trial)
        assert result.low <= result.rate <= result.high
        covered += result.low <= 0.7 <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_no_common_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        win_rate(np.array([np.nan]), np.array([1.0]), resamples=100, seed=0)
