"""The win rate and its interval."""

import numpy as np
import pytest

from rlhf.evaluation import score_gain, win_rate


def _ids(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_ties_count_half_and_lost_prompts_are_left_out() -> None:
    candidate = np.array([1.0, 2.0, 0.0, np.nan, 5.0], np.float32)
    baseline = np.array([0.0, 2.0, 1.0, 9.0, 4.0], np.float32)
    assert win_rate(candidate, baseline, _ids(5), resamples=200, seed=0).mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert score_gain(candidate, baseline, _ids(5), resamples=200, seed=0).mean == pytest.approx((1 + 0 - 1 + 1) / 4)


def test_every_prompt_counts_once_however_many_answers_it_has() -> None:
    candidate = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    baseline = np.array([0.0, 0.0, 0.0, 1.0], np.float32)
    assert win_rate(candidate, baseline, ["a", "a", "a", "b"], resamples=200, seed=0).mean == pytest.approx(0.5)


def test_answers_to_one_prompt_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    gains = rng.normal(size=20).astype(np.float32)
    once = score_gain(gains, np.zeros(20, np.float32), _ids(20), resamples=2000, seed=0)
    repeated = score_gain(
        np.repeat(gains, 9), np.zeros(180, np.float32), [str(n // 9) for n in range(180)], resamples=2000, seed=0
    )
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-6)


def test_the_interval_covers_the_truth_at_about_its_nominal_rate() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        candidate, baseline = (rng.random(100) < 0.7).astype(np.float32), np.full(100, 0.5, np.float32)
        result = win_rate(candidate, baseline, _ids(100), resamples=400, seed=trial)
        assert result.low <= result.mean <= result.high
        covered += result.low <= 0.7 <= result.high
    assert 0.88 <= covered / 200 <= 0.99


def test_no_common_prompt_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        win_rate(np.array([np.nan], np.float32), np.array([1.0], np.float32), ["a"], resamples=100, seed=0)
