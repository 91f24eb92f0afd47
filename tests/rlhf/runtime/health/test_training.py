import math

import pytest

from rlhf.runtime.health.training import (
    NON_FINITE_METRIC,
    gradient_spike,
    held_out_rise,
    loss_divergence,
    loss_spike,
)
from tests.rlhf.runtime.health.histories import alerts_of, line, noisy

LOSS = "loss/train"
DESCENT = noisy(line(6.0, 3.0, 40) + line(3.0, 0.6, 60), 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_metric_that_is_no_number_is_named(value: float) -> None:
    columns = {"loss/value": [1.0, 1.0, 2.0], "objective/kl": [0.5, value, 1.0], "policy/entropy": [1.0, value, 1.0]}
    (alert,) = alerts_of(NON_FINITE_METRIC, columns)
    assert (alert.step, alert.severity) == (2, "error")
    assert alert.finding.startswith("objective/kl is ")


def test_the_variance_that_constant_returns_leave_unexplained_is_no_trouble() -> None:
    assert alerts_of(NON_FINITE_METRIC, {"critic/explained_var": [math.nan, 0.1], "loss/value": [1.0, 2.0]}) == []


def test_a_gradient_norm_of_ten_times_the_usual_is_a_spike() -> None:
    rule = gradient_spike("policy/grad_norm", "critic/grad_norm")
    calm = noisy(30 * [1.0], 0.2)
    (alert,) = alerts_of(rule, {"policy/grad_norm": calm, "critic/grad_norm": [*calm[:20], 12.0, *calm[21:]]})
    assert alert.step == 21
    assert alert.finding.startswith("critic/grad_norm is 12, the median of the steps before is ")


def test_gradient_norms_that_vary_or_grow_slowly_or_have_just_begun_are_none() -> None:
    rule = gradient_spike("policy/grad_norm")
    assert alerts_of(rule, {"policy/grad_norm": [*noisy(20 * [1.0], 0.3), 5.0, 8.0, 1.0]}) == []
    assert alerts_of(rule, {"policy/grad_norm": [0.01 * 1.1**step for step in range(80)]}) == []
    assert alerts_of(rule, {"policy/grad_norm": [0.1, 0.1, 0.1, 3.0]}) == []


def test_a_loss_that_jumps_is_a_spike() -> None:
    (alert,) = alerts_of(loss_spike(LOSS), {LOSS: [*DESCENT[:50], DESCENT[50] + 1.5, *DESCENT[51:]]})
    assert alert.step == 51
    for jump, count in ((0.6, 0), (0.8, 1)):
        assert len(alerts_of(loss_spike(LOSS), {LOSS: [*15 * [1.0], 1.0 + jump]})) == count
    assert alerts_of(loss_spike(LOSS), {LOSS: [*9 * [1.0], 5.0]}) == [], "too few steps to compare with"


def test_a_loss_that_descends_noisily_is_none() -> None:
    for rule in (loss_spike(LOSS), loss_divergence(LOSS)):
        assert alerts_of(rule, {LOSS: DESCENT}) == []
        # A reward model that has learned its rows: a loss near 0, and batches that are ten times as bad.
        assert alerts_of(rule, {LOSS: 30 * [0.004, 0.002, 0.08]}) == []


def test_a_loss_that_rises_and_stays_up_is_a_divergence() -> None:
    (alert,) = alerts_of(loss_divergence(LOSS), {LOSS: DESCENT + line(0.6, 2.0, 20) + 20 * [2.0]})
    assert alert.severity == "error"
    assert 105 < alert.step < 125
    for rise, count in ((0.3, 0), (0.4, 1)):
        assert len(alerts_of(loss_divergence(LOSS), {LOSS: 20 * [1.0] + 40 * [1.0 + rise]})) == count
    spike = [*DESCENT[:50], 9.0, *DESCENT[51:]]
    assert alerts_of(loss_divergence(LOSS), {LOSS: spike}) == [], "a single step"


def test_a_held_out_loss_that_rises_is_overfitting() -> None:
    held_out = [0.673, 0.708, 0.828, 0.905]
    sparse = [held_out[step // 5] if step % 5 == 4 else None for step in range(20)]
    (alert,) = alerts_of(held_out_rise("rm/eval_loss"), {"rm/eval_loss": sparse, "rm/loss": 20 * [0.3]})
    assert alert.step == 15
    assert alert.finding == "rm/eval_loss is 0.8280; at its best it was 0.6730"
    assert alerts_of(held_out_rise("rm/eval_loss"), {"rm/eval_loss": [0.58, 0.565, 0.658]}) == []
