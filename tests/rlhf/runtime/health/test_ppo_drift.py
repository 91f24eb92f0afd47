from rlhf.runtime.health.ppo_drift import (
    ENTROPY_COLLAPSE,
    EOS_RATE_DROP,
    LENGTH_DRIFT,
    NEGATIVE_KL_TREND,
    kl_runaway,
)
from tests.rlhf.runtime.health.histories import alerts_of, line, noisy

KL, LENGTH = "objective/kl", "rollout/response_length_mean"


def test_a_negative_kl_over_five_steps_is_trouble() -> None:
    (alert,) = alerts_of(NEGATIVE_KL_TREND, {KL: [0.0, -0.3, -0.5, -0.6, -0.8, -1.1]})
    assert (alert.step, alert.severity) == (5, "error")
    assert alert.finding == "objective/kl is -0.4400 nats per sequence on average over 5 steps"


def test_estimates_that_scatter_around_a_small_kl_are_no_trouble() -> None:
    assert alerts_of(NEGATIVE_KL_TREND, {KL: [3e-7, -0.06, 0.1, -0.2, 0.25, -0.2, 0.4, -0.07, -0.1]}) == []
    # A mean below the limit that its own spread explains: mean -0.31, standard error 0.18.
    assert alerts_of(NEGATIVE_KL_TREND, {KL: [-0.9, 0.1, -0.4, -0.3, -0.05]}) == []


def test_kl_far_above_its_target_is_trouble() -> None:
    (alert,) = alerts_of(kl_runaway(6.0), {KL: [2.0, 9.0, 17.0, 26.0, 31.0]})
    assert (alert.step, alert.severity) == (5, "error")
    assert alert.finding == "objective/kl is 24.67 on average over 3 steps, above 18"


def test_kl_that_overshoots_its_target_and_returns_is_no_trouble() -> None:
    assert alerts_of(kl_runaway(8.0), {KL: [1.3, 9.6, 14.9, 6.7, 6.9, 4.4]}) == []


def test_without_a_target_kl_is_judged_in_nats_and_in_nats_per_token() -> None:
    def steps(kl: float, tokens: float) -> list[int]:
        return [alert.step for alert in alerts_of(kl_runaway(None), {KL: 4 * [kl], LENGTH: 4 * [tokens]})]

    assert steps(55.0, 40.0) == [3]
    assert steps(45.0, 40.0) == []
    # A thousand tokens may carry more, up to 500 nats.
    assert steps(300.0, 1000.0) == []
    assert steps(600.0, 1000.0) == [3]
    assert [alert.step for alert in alerts_of(kl_runaway(None), {KL: 3 * [55.0]})] == [3], "no length is logged"


def test_entropy_that_falls_below_a_quarter_is_a_collapse() -> None:
    (alert,) = alerts_of(ENTROPY_COLLAPSE, {"policy/entropy": [1.2, 0.8, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1]})
    assert alert.step == 7
    assert alert.finding == "policy/entropy is 0.2200 on average over 5 steps; it began at 1.200"


def test_entropy_that_halves_while_the_policy_learns_is_no_collapse() -> None:
    assert alerts_of(ENTROPY_COLLAPSE, {"policy/entropy": noisy(line(0.7, 0.35, 40), 0.03)}) == []
    assert alerts_of(ENTROPY_COLLAPSE, {"policy/entropy": [0.04, *9 * [0.001]]}) == [], "nothing to lose"


def test_responses_that_stop_ending_are_trouble() -> None:
    (alert,) = alerts_of(EOS_RATE_DROP, {"rollout/eos_rate": [0.98, 0.9, 0.7, 0.6, 0.5, 0.4, 0.3]})
    assert alert.step == 6
    assert alert.finding == "rollout/eos_rate is 0.6200 on average over 5 steps; it began at 0.9800"


def test_a_few_more_cut_off_responses_are_no_trouble() -> None:
    assert alerts_of(EOS_RATE_DROP, {"rollout/eos_rate": noisy(line(0.78, 0.6, 30), 0.05)}) == []
    assert alerts_of(EOS_RATE_DROP, {"rollout/eos_rate": 20 * [0.0]}) == [], "a model that never learned to end"


def test_lengths_that_double_or_halve_are_trouble() -> None:
    grown = alerts_of(LENGTH_DRIFT, {LENGTH: line(16.0, 60.0, 12)})
    shrunk = alerts_of(LENGTH_DRIFT, {LENGTH: line(16.0, 2.0, 12)})
    assert [len(grown), len(shrunk)] == [1, 1]
    # Steps 5 to 9 are 32, 36, ... 48 and 4 * 4 apart: the first mean above 32 is that of 28 .. 44.
    assert (grown[0].step, grown[0].finding) == (
        8,
        "rollout/response_length_mean is 36 on average over 5 steps; it began at 16",
    )


def test_lengths_that_move_by_half_are_no_trouble() -> None:
    assert alerts_of(LENGTH_DRIFT, {LENGTH: [16.5, 13.4, 12.4, 11.0, 9.3, 9.8, 11.2, 13.1, 15.8, 16.6, 22.0]}) == []
