import math

from rlhf.runtime.health.ppo_update import (
    CANARY_CREEP,
    CLIP_FRACTION,
    EXPLAINED_VARIANCE,
    RATIO_OUTLIERS,
    first_pass_ratio,
)
from tests.rlhf.runtime.health.histories import alerts_of


def test_a_first_pass_ratio_off_one_is_told_at_once() -> None:
    key = "policy/first_step_ratio_error"
    (alert,) = alerts_of(first_pass_ratio(is_float32=True), {key: [2e-5, 0.013, 0.5]})
    assert (alert.step, alert.severity) == (2, "error")
    assert alert.finding == "policy/first_step_ratio_error is 0.0130, above 0.01"


def test_the_rounding_of_the_first_pass_ratio_is_no_trouble_in_either_precision() -> None:
    key = "policy/first_step_ratio_error"
    assert alerts_of(first_pass_ratio(is_float32=True), {key: [2e-5, 6e-5, 0.009]}) == []
    assert alerts_of(first_pass_ratio(is_float32=False), {key: [0.16, 0.29, 0.21]}) == []
    assert [a.step for a in alerts_of(first_pass_ratio(is_float32=False), {key: [0.9, 1.1]})] == [2]


def test_most_tokens_clipped_for_five_steps_is_trouble() -> None:
    (alert,) = alerts_of(CLIP_FRACTION, {"policy/clipfrac": [0.2, 0.3, 0.4, 0.45, 0.46, 0.5]})
    assert (alert.step, alert.severity) == (5, "warning")
    assert alert.finding == "policy/clipfrac is 0.3620 on average over 5 steps, above 0.3"


def test_a_bold_first_step_and_a_high_share_that_falls_are_no_trouble() -> None:
    assert alerts_of(CLIP_FRACTION, {"policy/clipfrac": [0.33, 0.26, 0.22, 0.21, 0.18, 0.15]}) == []
    assert alerts_of(CLIP_FRACTION, {"policy/clipfrac": [0.9, 0.9, 0.9, 0.9]}) == []


def test_outliers_of_the_ratio_in_most_steps_are_trouble_and_single_ones_are_not() -> None:
    (alert,) = alerts_of(RATIO_OUTLIERS, {"policy/ratio_max": [1.5, 12.0, 2.0, 40.0, 11.0, 2.0]})
    assert alert.step == 5
    assert alert.finding == "policy/ratio_max was above 10 in 3 of 5 steps, up to 40"
    assert alerts_of(RATIO_OUTLIERS, {"policy/ratio_max": [8.1, 34.4, 3.2, 3.3, 3.4, 12.0, 2.9]}) == []


def test_a_critic_below_a_constant_for_long_is_trouble() -> None:
    (alert,) = alerts_of(EXPLAINED_VARIANCE, {"critic/explained_var": 4 * [0.1, -0.2, -0.4, -0.1, -0.3]})
    assert alert.step == 15
    assert alert.finding == "critic/explained_var was below 0 in 12 of 15 steps, -0.1800 on average"


def test_a_critic_that_starts_badly_or_dips_is_no_trouble() -> None:
    late = [-3.3, -1.3, -0.7, -0.2, 0.1, 0.2, -0.1, 0.3, 0.4, 0.3, -0.2, -0.6, -0.2, 0.1, 0.3, 0.2]
    assert alerts_of(EXPLAINED_VARIANCE, {"critic/explained_var": late}) == []
    # Returns without variance: nothing to explain.
    assert alerts_of(EXPLAINED_VARIANCE, {"critic/explained_var": 30 * [math.nan]}) == []


def test_a_canary_that_creeps_is_told_before_the_run_is_stopped() -> None:
    (alert,) = alerts_of(CANARY_CREEP, {"sync/canary_max_logprob_diff": [1e-5 * 1.4**step for step in range(12)]})
    assert alert.step == 10
    assert alert.finding.startswith("sync/canary_max_logprob_diff is 1.18e-4 on average over 5 steps; it began at")


def test_rounding_of_the_canary_is_no_trouble_where_it_is_there_from_the_start() -> None:
    assert alerts_of(CANARY_CREEP, {"sync/canary_max_logprob_diff": 4 * [0.01, 0.03, 0.02]}) == []
    assert alerts_of(CANARY_CREEP, {"sync/canary_max_logprob_diff": [0.01] + 9 * [0.045]}) == []
    assert len(alerts_of(CANARY_CREEP, {"sync/canary_max_logprob_diff": [0.01] + 9 * [0.055]})) == 1
    assert alerts_of(CANARY_CREEP, {"sync/canary_max_logprob_diff": [0.0] + 10 * [5e-5]}) == []
