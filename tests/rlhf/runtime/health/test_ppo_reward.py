import pytest

from rlhf.runtime.health.ppo_reward import SCORE_FOLLOWS_LENGTH, SCORE_SPREAD, dropped_samples, over_optimisation
from tests.rlhf.runtime.health.histories import alerts_of, line, noisy

CORRELATION = "objective/score_length_correlation"
RISING = noisy(line(0.0, 2.0, 60), 0.15)


@pytest.mark.parametrize(("sign", "liked"), [(1, "longer"), (-1, "shorter")])
def test_scores_that_follow_length_are_trouble_either_way(sign: int, liked: str) -> None:
    (alert,) = alerts_of(SCORE_FOLLOWS_LENGTH, {CORRELATION: [sign * c for c in (0.3, 0.5, 0.7, 0.8, 0.8, 0.9)]})
    assert alert.step == 5
    assert alert.finding.endswith(f"on average over 5 steps: {liked} responses score higher")


def test_scores_that_length_explains_in_part_are_no_trouble() -> None:
    assert alerts_of(SCORE_FOLLOWS_LENGTH, {CORRELATION: [0.5, 0.9, 0.4, 0.6, 0.5, -0.1, 0.2]}) == []
    # Steps where all lengths are the same log none.
    assert alerts_of(SCORE_FOLLOWS_LENGTH, {CORRELATION: [0.9, 0.9, None, 0.9, None, 0.9]}) == []


def test_a_gold_score_that_falls_while_the_proxy_rises_is_over_optimisation() -> None:
    gold = noisy(line(0.0, 1.0, 30) + line(1.0, 0.1, 30), 0.15, seed=1)
    columns = {"objective/scores": RISING, "reward/gold": gold}
    (alert,) = alerts_of(over_optimisation(("gold",)), columns)
    assert alert.severity == "error"
    assert 35 < alert.step < 55
    assert alert.finding.startswith("reward/gold fell from ")
    assert alerts_of(over_optimisation(()), columns) == [], "nobody said that it is only watched"


@pytest.mark.parametrize("seed", range(20))
def test_a_gold_score_that_levels_off_is_none(seed: int) -> None:
    level = noisy(line(0.0, 1.0, 20) + 180 * [1.0], 0.2, seed=seed)
    proxy = noisy(line(0.0, 2.0, 200), 0.15, seed=seed + 100)
    assert alerts_of(over_optimisation(("gold",)), {"objective/scores": proxy, "reward/gold": level}) == []


def test_a_gold_score_that_falls_together_with_the_proxy_is_none() -> None:
    both = noisy(line(0.0, 1.0, 30) + line(1.0, 0.0, 30), 0.1)
    assert alerts_of(over_optimisation(("gold",)), {"objective/scores": both, "reward/gold": both}) == []


def test_a_fall_counts_from_a_fifth_of_what_was_gained() -> None:
    def alerts(end: float) -> int:
        gold = noisy(line(0.0, 1.0, 30) + line(1.0, end, 30), 0.005)
        return len(alerts_of(over_optimisation(("gold",)), {"objective/scores": RISING, "reward/gold": gold}))

    assert (alerts(0.85), alerts(0.65)) == (0, 1)


def test_a_gold_score_that_falls_while_the_proxy_stands_still_is_none() -> None:
    columns = {"objective/scores": 60 * [0.5], "reward/gold": line(1.0, 0.0, 60)}
    assert alerts_of(over_optimisation(("gold",)), columns) == []


def test_a_held_out_score_that_falls_at_evaluations_is_over_optimisation() -> None:
    held_out = [0.1, 0.5, 0.9, 1.1, 1.0, 1.1, 0.8, 0.3, -0.2, -0.4]
    sparse = [held_out[step // 6] if step % 6 == 5 else None for step in range(60)]
    (alert,) = alerts_of(over_optimisation(()), {"objective/scores": RISING, "eval/score": sparse})
    assert alert.finding == "eval/score fell from 1.067 around step 36 to -0.1000 while objective/scores rose"
    up = [None if value is None else abs(value) for value in sparse[:36]]
    assert alerts_of(over_optimisation(()), {"objective/scores": RISING[:36], "eval/score": up}) == []


def test_scores_without_a_spread_are_trouble() -> None:
    (alert,) = alerts_of(SCORE_SPREAD, {"objective/scores_std": [0.5, 0.2, 0.004, 0.003, 0.0, 0.001, 0.002]})
    assert alert.step == 7
    (alert,) = alerts_of(SCORE_SPREAD, {"objective/scores_std": 9 * [0.0]})
    assert alert.step == 5, "a reward that is constant from the start"


def test_scores_whose_spread_shrinks_are_no_trouble() -> None:
    assert alerts_of(SCORE_SPREAD, {"objective/scores_std": line(1.1, 0.15, 30)}) == []
    assert alerts_of(SCORE_SPREAD, {"objective/scores_std": [0.5, 0.0, 0.0, 0.0, 0.0, 0.4, 0.0]}) == []


def test_responses_that_go_missing_are_trouble_from_one_in_twenty() -> None:
    (alert,) = alerts_of(dropped_samples(40), {"rollout/dropped": [0, 1, 2, 3, 3, 2, 4]})
    assert alert.step == 6
    assert alert.finding == "6% of the responses were dropped over 5 steps"
    assert alerts_of(dropped_samples(40), {"rollout/dropped": [0, 8, 0, 0, 0, 0, 2, 2, 2, 2]}) == []
