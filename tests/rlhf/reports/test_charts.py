import math
from xml.etree import ElementTree

import pytest

from rlhf.reports.axes import horizontal_axis, nice_ticks, tick_labels, vertical_axis
from rlhf.reports.charts import Chart, ReferenceLine, Series, legend_of, non_finite_count, render_chart


def chart(*series: Series, **fields) -> Chart:
    return Chart("title", "step", "unit", series, **fields)


def drawn(one: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(render_chart(one))


def texts(root: ElementTree.Element, kind: str) -> list[str]:
    return [element.text or "" for element in root.iter("text") if element.get("class") == kind]


def line_points(root: ElementTree.Element) -> list[list[tuple[float, float]]]:
    lines = [element.get("points", "") for element in root.iter("polyline")]
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in lines]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 10.0, [0, 2, 4, 6, 8, 10]),
        (-0.3, 1.7, [0, 0.5, 1, 1.5]),
        (1.0, 200.0, [50, 100, 150, 200]),
        (2e-6, 9e-6, [2e-6, 4e-6, 6e-6, 8e-6]),
        (9.97, 12.6, [10, 11, 12]),
    ],
)
def test_ticks_are_round_and_inside_the_range(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_ticks_of_counts_are_whole() -> None:
    assert nice_ticks(0, 3, 6, integers=True) == [0, 1, 2, 3]
    assert horizontal_axis([1, 2, 4], 0, 100).ticks == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("ticks", "labels"),
    [
        ([0, 0.5, 1.0], ["0", "0.5", "1.0"]),
        ([0, 0.25, 0.5], ["0", "0.25", "0.50"]),
        ([0, 500, 1000], ["0", "500", "1000"]),
        ([0, 5000, 10000], ["0", "5k", "10k"]),
        ([0, 2.5e6, 5e6, 7.5e6, 1e7], ["0", "2.5M", "5.0M", "7.5M", "10.0M"]),
        ([0, 2.5e-5, 5e-5], ["0", "2.5e-5", "5e-5"]),
        ([-2.0, 0.0], ["-2", "0"]),
    ],
)
def test_labels_tell_ticks_apart_without_being_long(ticks: list[float], labels: list[str]) -> None:
    assert tick_labels(ticks) == labels


def test_the_vertical_axis_starts_at_zero_only_where_values_come_near_it() -> None:
    assert vertical_axis([1, 9], 196, 10).low == 0
    assert vertical_axis([-9, -1], 196, 10).high == 0
    near_ten = vertical_axis([9.0, 10.0], 196, 10)
    assert 8.9 < near_ten.low < 9.0
    assert 10.0 < near_ten.high < 10.1


def test_larger_values_stand_higher_and_later_steps_further_right() -> None:
    ((start, middle, end),) = line_points(drawn(chart(Series("a", [0, 1, 3], [1.0, 5.0, 2.0]))))
    assert start[0] < middle[0] < end[0]
    assert middle[1] < end[1] < start[1]
    assert (end[0] - middle[0]) == pytest.approx(2 * (middle[0] - start[0]), abs=0.2)


def test_a_constant_and_a_single_point_are_drawn() -> None:
    ((first, second),) = line_points(drawn(chart(Series("a", [0, 1], [3.0, 3.0]))))
    assert first[1] == second[1]
    single = drawn(chart(Series("a", [7], [3.0])))
    assert line_points(single) == []
    assert len(list(single.iter("circle"))) >= 1


def test_a_non_finite_value_leaves_a_gap_and_is_counted() -> None:
    one = chart(Series("a", [0, 1, 2, 3, 4], [1.0, 2.0, math.nan, 2.0, 1.0]), Series("b", [0], [math.inf]))
    assert [len(line) for line in line_points(drawn(one))] == [2, 2]
    assert non_finite_count(one) == 2


@pytest.mark.parametrize("values", [[], [math.nan, math.inf], [1e308]])
def test_nothing_to_draw_is_said_in_words(values: list[float]) -> None:
    root = drawn(chart(Series("a", list(range(len(values))), values)))
    assert texts(root, "tick") == ["no finite values"]


def test_a_long_series_is_thinned_without_losing_its_spikes() -> None:
    values = [1.0] * 5000
    values[1234], values[4321] = 50.0, -50.0
    (points,) = line_points(drawn(chart(Series("a", list(range(5000)), values))))
    assert len(points) <= 300
    spread = max(y for _, y in points) - min(y for _, y in points)
    assert spread > 150


def test_the_tooltip_of_a_step_lists_every_series_there() -> None:
    root = drawn(chart(Series("a", [1, 2], [0.5, 0.25]), Series("b", [2, 3], [8.0, 9.0])))
    assert [title.text for title in root.iter("title")] == [
        "step 1\na: 0.5000",
        "step 2\na: 0.2500\nb: 8",
        "step 3\nb: 9",
    ]


def test_points_whose_x_goes_back_have_a_tooltip_each() -> None:
    root = drawn(chart(Series("a", [1.0, 3.0, 2.0], [1.0, 2.0, 3.0], markers=True)))
    titles = [title.text for title in root.iter("title")]
    assert titles == ["a\nstep 1\nunit 1", "a\nstep 3\nunit 2", "a\nstep 2\nunit 3"]


def test_an_interval_is_a_band_or_a_bar_at_each_marker() -> None:
    band = drawn(chart(Series("a", [0, 1], [1.0, 2.0], low=[0.5, 1.5], high=[1.5, 2.5])))
    assert [len(polygon.get("points", "").split()) for polygon in band.iter("polygon")] == [4]
    bars = drawn(chart(Series("a", [0, 1], [1.0, 2.0], [0.5, 1.5], [1.5, 2.5], markers=True, line=False)))
    assert len([line for line in bars.iter("line") if line.get("class") == "bar"]) == 2
    assert line_points(bars) == []


def test_categories_name_the_positions() -> None:
    named = chart(Series("win rate", [0, 1], [0.5, 0.75], markers=True, line=False), categories=["SFT", "PPO"])
    assert {"SFT", "PPO"} <= set(texts(drawn(named), "tick"))
    assert "win rate\nPPO\nunit 0.7500" in [title.text for title in drawn(named).iter("title")]
    with pytest.raises(ValueError, match=r"series 'win rate': x is \[2\]; with categories it counts from 0 to 1"):
        render_chart(chart(Series("win rate", [2], [0.5]), categories=["SFT", "PPO"]))


def test_reference_lines_are_labelled_and_inside_the_axes() -> None:
    root = drawn(
        chart(Series("a", [0, 1], [1.0, 2.0]), references=[ReferenceLine(6.0, "target"), ReferenceLine(3, "end", "x")])
    )
    assert texts(root, "reference") == ["target", "end"]
    lines = [line for line in root.iter("line") if line.get("class") == "reference"]
    assert all(10 <= float(line.get("y1", "")) <= 196 and 46 <= float(line.get("x1", "")) <= 388 for line in lines)


def test_the_label_of_an_upright_line_stands_where_there_is_room() -> None:
    ends = [ReferenceLine(0.0, "start", "x"), ReferenceLine(1.0, "end", "x")]
    root = drawn(chart(Series("a", [0, 1], [1.0, 2.0]), references=ends))
    anchors = {label.text: label.get("text-anchor") for label in root.iter("text") if label.get("class") == "reference"}
    assert anchors == {"start": None, "end": "end"}


def test_a_legend_appears_where_series_need_telling_apart_and_faint_ones_share_a_colour() -> None:
    assert legend_of(chart(Series("a", [0], [1.0]))) == []
    assert legend_of(chart(Series("raw", [0], [1.0], faint=True), Series("mean", [0], [1.0]))) == []
    pair = chart(Series("raw", [0], [1.0], faint=True), Series("a", [0], [1.0]), Series("b", [0], [1.0]))
    assert legend_of(pair) == [("a", 0), ("b", 1)]


def test_names_are_escaped_and_lengths_checked() -> None:
    hostile = Chart('<t> & "q"', "<x>", "<y>", [Series("<s>", [0, 1], [1.0, 2.0])], [ReferenceLine(1.0, "<r>")])
    root = drawn(hostile)
    assert texts(root, "axis") == ["<x>"]
    assert root.get("aria-label", "").startswith('<t> & "q": <s> from 1 to 2')
    with pytest.raises(ValueError, match=r"series 'a': lengths differ: \{'x': 2, 'y': 1\}"):
        render_chart(chart(Series("a", [0, 1], [1.0])))


def rectangles(root: ElementTree.Element) -> list[list[float]]:
    """x, y, width and height of each bar."""
    bars = [bar for bar in root.iter("rect") if bar.get("class") == "column"]
    return [[float(bar.get(name, "")) for name in ("x", "y", "width", "height")] for bar in bars]


def test_bars_stand_on_zero_and_are_as_wide_as_said() -> None:
    (low, high) = rectangles(drawn(chart(Series("count", [0.5, 1.5], [2.0, 4.0], bar_width=1.0))))
    assert low[0] == pytest.approx(46)
    assert high[0] + high[2] == pytest.approx(388, abs=0.1)
    assert low[0] + low[2] == pytest.approx(high[0], abs=0.1)
    assert low[1] + low[3] == high[1] + high[3] == pytest.approx(196, abs=0.1)
    assert high[3] == pytest.approx(2 * low[3], abs=0.2)


def test_an_axis_reaches_the_values_it_is_told_to_show() -> None:
    root = drawn(chart(Series("a", [0, 1], [0.6, 0.7]), shown=(0.0, 1.0)))
    assert {"0", "1.00"} <= set(texts(root, "tick"))


def test_a_bar_below_zero_hangs_from_it() -> None:
    (down, up) = rectangles(drawn(chart(Series("gain", [0, 1], [-1.0, 1.0], bar_width=0.8))))
    assert down[1] == pytest.approx(up[1] + up[3], abs=0.2)


def test_the_line_of_equality_runs_over_what_both_axes_show() -> None:
    root = drawn(chart(Series("a", [0.5, 1.0], [0.4, 0.9], markers=True, line=False), identity="as sure as right"))
    (line,) = [line for line in root.iter("line") if line.get("class") == "reference"]
    assert texts(root, "reference") == ["as sure as right"]
    assert float(line.get("x1", "")) == pytest.approx(46)
    assert 10 <= float(line.get("y2", "")) < float(line.get("y1", "")) <= 196
    apart = drawn(chart(Series("a", [5.0, 6.0], [0.1, 0.2]), identity="equal"))
    assert texts(apart, "reference") == []
