import math

import pytest

from rlhf.runtime.health.history import REMEMBERED_STEPS, History, rolling_means, step_noise


def history_of(*values: float, key: str = "loss/train") -> History:
    history = History()
    for step, value in enumerate(values, start=1):
        history.append(step, {key: value})
    return history


def test_a_window_is_empty_and_its_mean_nan_while_there_are_too_few_values() -> None:
    history = history_of(1.0, 4.0)
    assert history.last("loss/train", 2) == [1.0, 4.0]
    assert history.last("loss/train", 3) == []
    assert history.mean("loss/train", 2) == 2.5
    assert math.isnan(history.mean("loss/train", 3))
    assert math.isnan(history.mean("never/logged", 1))
    assert math.isnan(history.first("never/logged"))


def test_values_that_are_not_finite_count_only_in_the_newest_row() -> None:
    history = history_of(math.nan, 2.0, math.inf)
    assert history.points("loss/train") == [(2, 2.0)]
    assert history.first("loss/train") == 2.0
    assert history.newest == {"loss/train": math.inf}


def test_old_values_are_forgotten_and_the_first_is_kept() -> None:
    history = history_of(*map(float, range(REMEMBERED_STEPS + 3)))
    assert len(history.points("loss/train")) == REMEMBERED_STEPS
    assert history.points("loss/train")[0] == (4, 3.0)
    assert history.first("loss/train") == 0.0


def test_the_newest_value_stands_beside_the_median_of_those_before_it() -> None:
    history = history_of(9.0, 1.0, 5.0, 2.0, 7.0)
    assert history.newest_and_median("loss/train", steps=3, at_least=3) == (7.0, 2.0)
    assert history.newest_and_median("loss/train", steps=9, at_least=4) == (7.0, 3.5)
    assert history.newest_and_median("loss/train", steps=9, at_least=5) is None
    assert history.newest_and_median("never/logged", steps=9, at_least=1) is None


def test_rolling_means_worked_by_hand() -> None:
    assert rolling_means([1.0, 2.0, 6.0, 4.0], 2) == [1.5, 4.0, 5.0]
    assert rolling_means([1.0], 2) == []


def test_the_noise_around_a_trend_does_not_count_the_trend() -> None:
    # Differences 3, -1, 3: their mean square is 19 / 3.
    assert step_noise([0.0, 3.0, 2.0, 5.0]) == pytest.approx(math.sqrt(19 / 6))
    assert step_noise([float(n) for n in range(100)]) == pytest.approx(math.sqrt(0.5))
    assert step_noise([4.0]) == 0.0
