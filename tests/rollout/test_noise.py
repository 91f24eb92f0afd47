from typing import Any

import numpy as np
import pytest

from rollout.noise import keyed_generator, uniforms

KEY: dict[str, Any] = {"seed": 3, "step": 7, "prompt_id": "p", "response_index": 1, "length": 8}


def test_the_same_key_gives_the_same_numbers_again() -> None:
    np.testing.assert_array_equal(uniforms(**KEY), uniforms(**KEY))


@pytest.mark.parametrize("change", [{"seed": 4}, {"step": 8}, {"prompt_id": "q"}, {"response_index": 2}])
def test_every_part_of_the_key_changes_all_numbers(change: dict[str, Any]) -> None:
    assert not np.isin(uniforms(**KEY), uniforms(**{**KEY, **change})).any()


def test_a_shorter_response_sees_a_prefix_of_the_noise_of_a_longer_one() -> None:
    np.testing.assert_array_equal(uniforms(**KEY)[:3], uniforms(**{**KEY, "length": 3}))


def test_the_numbers_are_pinned_so_that_recorded_runs_stay_reproducible() -> None:
    expected = [0.6944311672998251, 0.9708622526177513, 0.5802596877692381]
    np.testing.assert_array_equal(uniforms(0, 0, "0", 0, 3), expected)


def test_numbers_are_uniform_on_the_unit_interval() -> None:
    numbers = np.concatenate([uniforms(0, step, "p", 0, 100) for step in range(200)])
    assert numbers.dtype == np.float64
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Each decile of 20,000 numbers holds 2,000 +- 42 (one standard deviation).
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 210


@pytest.mark.parametrize(("one", "other"), [(("a", 1), ("a", "1")), (("ab", "c"), ("a", "bc")), ((1, 23), (12, 3))])
def test_keys_that_read_alike_are_different_keys(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> None:
    assert keyed_generator(*one).random() != keyed_generator(*other).random()
