import re

from rlhf.dashboard.layout import STEP_AXIS, dashboard_sections
from rlhf.runtime.metric_registry import FAMILIES, GROUPS, METRICS

SECTIONS = {section.name: section for section in dashboard_sections()}


def keys_of(name: str) -> list[str]:
    return [key for plot in SECTIONS[name].plots for key in plot.metrics]


def test_the_sections_come_in_the_order_in_which_a_run_is_judged() -> None:
    assert list(SECTIONS) == [
        "objective",
        "policy",
        "critic",
        "rollout",
        "sync",
        "reward model",
        "evaluation",
        "performance",
    ]
    assert keys_of("objective")[:3] == ["objective/scores", "objective/rlhf_reward", "objective/kl"]


def test_every_plotted_metric_is_documented_and_stands_in_its_own_section() -> None:
    for section in SECTIONS.values():
        for plot in section.plots:
            assert plot.x in METRICS
            assert bool(plot.metrics) != bool(plot.family), plot
            assert plot.heading
            for key in plot.metrics:
                assert key in METRICS, key
                assert key.startswith(section.covers), f"{key} does not belong to {section.name}"


def test_every_documented_metric_is_plotted_in_one_section() -> None:
    owners = {key: [name for name in SECTIONS if key in keys_of(name)] for key in METRICS if key != STEP_AXIS}
    assert {key: names for key, names in owners.items() if len(names) != 1} == {}


def test_every_metric_group_has_a_section() -> None:
    covered = {prefix.split("/")[0] for section in SECTIONS.values() for prefix in section.covers}
    assert covered == set(GROUPS)


def test_a_pattern_selects_the_members_of_every_metric_family() -> None:
    patterns = [plot.family for section in SECTIONS.values() for plot in section.plots if plot.family]
    for family in FAMILIES:
        member = re.sub(r"<\w+>", "proxy-1", family.key)
        assert any(re.fullmatch(pattern, member) for pattern in patterns), family.key


def test_no_two_plots_of_a_section_have_one_heading() -> None:
    for section in SECTIONS.values():
        headings = [plot.heading for plot in section.plots]
        assert len(set(headings)) == len(headings)


def test_a_heading_without_a_title_is_key_and_unit() -> None:
    headings = [plot.heading for plot in SECTIONS["critic"].plots]
    assert "critic/explained_var" in headings
    assert "critic/squared_error [reward^2]" in headings
