import math

import pytest

from rlhf.runtime.console import CONSOLE_COLUMNS
from rlhf.runtime.metric_registry import (
    GROUPS,
    METRICS,
    find_metric,
    format_value,
    registry_order,
    require_documented,
)


def test_every_metric_belongs_to_a_described_group_and_has_a_unit_and_a_sentence() -> None:
    for key, metric in METRICS.items():
        assert metric.group in GROUPS, key
        assert metric.unit, key
        assert metric.description.endswith("."), key


def test_every_key_is_documented_once() -> None:
    assert len({metric.description for metric in METRICS.values()}) == len(METRICS)


def test_an_undocumented_key_is_refused_with_the_closest_documented_one() -> None:
    with pytest.raises(ValueError, match=r"undocumented metric 'objective/KL' \(close: 'objective/kl'\)"):
        require_documented(["objective/kl", "objective/KL"])
    with pytest.raises(ValueError, match="undocumented metric 'zzzzzz'"):
        require_documented(["zzzzzz"])


def test_a_family_admits_a_name_of_the_users_choice_and_nothing_deeper() -> None:
    component = find_metric("reward/length-penalty")
    assert component is not None
    assert component.key == "reward/length-penalty"
    assert component.unit == "reward"
    assert find_metric("reward/a/b") is None
    disagreement = find_metric("reward/taste/disagreement")
    assert disagreement is not None
    assert (disagreement.key, "standard deviation" in disagreement.description) == ("reward/taste/disagreement", True)
    assert find_metric("reward/") is None


def test_a_named_eval_metric_keeps_the_meaning_of_the_documented_one() -> None:
    named = find_metric("eval/ppo_ptx/win_rate")
    assert named is not None
    assert named.description == "Share of prompts on which the candidate scores higher; ties count one half. (ppo_ptx)"
    assert named.unit == "share"
    assert find_metric("eval/ppo_ptx/unheard_of") is None


def test_metrics_sort_by_group_then_as_documented_with_families_last() -> None:
    keys = ["time/step", "objective/kl", "reward/b", "objective/scores", "reward/a"]
    assert sorted(keys, key=registry_order) == ["objective/scores", "objective/kl", "reward/a", "reward/b", "time/step"]


def test_the_terminal_shows_documented_metrics_only() -> None:
    for columns in CONSOLE_COLUMNS.values():
        require_documented(key for key, _ in columns)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.52314, "0.5231"),
        (-3.14159, "-3.142"),
        (12.3456, "12.35"),
        (999.96, "1000.0"),
        (3.0, "3"),
        (12345.6, "12,346"),
        (1e-5, "1.00e-5"),
        (2.5e8, "2.50e8"),
        (math.nan, "NaN"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_are_written_with_four_digits(value: float, text: str) -> None:
    assert format_value(value) == text
