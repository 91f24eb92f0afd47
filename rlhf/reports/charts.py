"""Line, point and bar charts as inline SVG: data in, markup out, no script, no library.

Owns the drawing; `axes` has ranges and ticks. Colours, type and dark mode are CSS classes of
`report_template.html`, so one chart serves every theme. All charts share one size; a page places them in a grid.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup, escape

from rlhf.reports.axes import Axis, category_axis, horizontal_axis, tick_labels, vertical_axis
from rlhf.runtime.metric_registry import format_value

WIDTH, HEIGHT = 400, 236
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 388, 10, 196
_MAX_DRAWN_POINTS = 300
_MAX_HOVER_COLUMNS = 48
_COLOURS = 6
_LARGEST_DRAWN = 1e100

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """One line, a set of points, or bars.

    Attributes:
        name: Shown in the legend and the tooltips.
        x: Horizontal values; a line joins them in the order given.
        y: Vertical values; a non-finite one leaves a gap.
        low: Lower ends of an interval around y; drawn as a band, or as bars where `markers` is set.
        high: Upper ends.
        markers: Whether each point is drawn as a dot.
        line: Whether the points are joined.
        faint: Drawn in the background, in the colour of the series that follows.
        bar_width: Draws y as bars from zero, so wide in units of x, instead of points and lines; None draws none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    markers: bool = False
    line: bool = True
    faint: bool = False
    bar_width: float | None = None


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A dashed line at one value, such as a target or the start's level."""

    value: float
    label: str
    axis: Literal["x", "y"] = "y"


@dataclass(frozen=True, slots=True)
class Chart:
    """A titled chart.

    Attributes:
        title: What is shown.
        x_label: Name of the horizontal axis.
        y_label: Unit of the vertical axis, shown below the title.
        series: Drawn in order, each in a colour of its own.
        references: Dashed lines.
        identity: Label of a dashed line at y = x; empty for none.
        shown: Values that the vertical axis must reach, so that several charts have one scale.
        categories: Names of x = 0, 1, 2, ...; empty where x is a number.
        description: A sentence below the chart.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    references: Sequence[ReferenceLine] = ()
    identity: str = ""
    shown: Sequence[float] = ()
    categories: Sequence[str] = ()
    description: str = ""


def legend_of(chart: Chart) -> list[tuple[str, int]]:
    """(name, colour) of each series that needs telling apart; empty for a single one."""
    entries = [(series.name, colour) for series, colour in _coloured(chart.series) if not series.faint]
    return entries if len(entries) > 1 else []


def non_finite_count(chart: Chart) -> int:
    """How many values have no place in the chart; a page should say so."""
    return sum(not _is_drawable(value) for series in chart.series if not series.faint for value in series.y)


def render_chart(chart: Chart) -> Markup:
    """The chart as one `<svg>` element; text is escaped.

    Raises:
        ValueError: a series' x, y, low and high differ in length, or its x is none of the categories' positions.
    """
    _require_drawable(chart)
    points = [point for series in chart.series for point in _finite_points(series)]
    body = _empty_body() if not points else _body(chart, *_axes(chart, points))
    label = escape(f"{chart.title}: {_in_words(chart)}")
    return Markup(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>')


def _require_drawable(chart: Chart) -> None:
    for series in chart.series:
        last = len(chart.categories) - 1
        if chart.categories and not set(series.x) <= set(range(len(chart.categories))):
            where = f"chart '{chart.title}', series '{series.name}'"
            raise ValueError(f"{where}: x is {list(series.x)}; with categories it counts from 0 to {last}")
        lengths = {
            name: len(values) for name in ("x", "y", "low", "high") if (values := getattr(series, name)) is not None
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"chart '{chart.title}', series '{series.name}': lengths differ: {lengths}; give one each point"
            )


def _coloured(series: Sequence[Series]) -> list[tuple[Series, int]]:
    """Each series with its colour; a faint one shares the colour of the next."""
    colour, result = 0, list[tuple[Series, int]]()
    for one in series:
        result.append((one, colour % _COLOURS))
        colour += not one.faint
    return result


def _is_drawable(value: float) -> bool:
    """Finite, and far enough from overflow for the arithmetic of an axis."""
    return math.isfinite(value) and abs(value) < _LARGEST_DRAWN


def _finite_points(series: Series) -> list[Point]:
    return [(x, y) for x, y in zip(series.x, series.y, strict=True) if _is_drawable(x) and _is_drawable(y)]


def _interval(series: Series) -> list[tuple[float, float, float]]:
    """(x, low, high) where both ends are finite."""
    if series.low is None or series.high is None:
        return []
    triples = zip(series.x, series.low, series.high, strict=True)
    return [(x, low, high) for x, low, high in triples if _is_drawable(low) and _is_drawable(high)]


def _axes(chart: Chart, points: list[Point]) -> tuple[Axis, Axis]:
    xs = [x for x, _ in points] + [line.value for line in chart.references if line.axis == "x"]
    ys = [*chart.shown, *(y for _, y in points)] + [line.value for line in chart.references if line.axis == "y"]
    ys += [end for series in chart.series for _, low, high in _interval(series) for end in (low, high)]
    for series in chart.series:
        if series.bar_width is not None:
            ys.append(0.0)
            xs += [x + side * series.bar_width for x, _ in _finite_points(series) for side in (-0.5, 0.5)]
    vertical = vertical_axis(ys, _BOTTOM, _TOP)
    if chart.categories:
        return category_axis(len(chart.categories), _LEFT, _RIGHT), vertical
    return horizontal_axis(xs, _LEFT, _RIGHT), vertical


def _empty_body() -> list[str]:
    middle = f'x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle"'
    return [f'<text class="tick" {middle}>no finite values</text>']


def _body(chart: Chart, x: Axis, y: Axis) -> list[str]:
    parts = [*_horizontal_grid(y), *_horizontal_ticks(chart, x), *_identity_marks(chart.identity, x, y)]
    for series, colour in _coloured(chart.series):
        parts += [f'<g class="c{colour}{" faint" if series.faint else ""}">', *_series_marks(series, x, y), "</g>"]
    parts += [mark for line in chart.references for mark in _reference_marks(line, x, y)]
    return parts + _hover_marks(chart, x, y)


def _horizontal_grid(y: Axis) -> Iterator[str]:
    for tick, label in zip(y.ticks, tick_labels(y.ticks), strict=True):
        at = f"{y(tick):.1f}"
        yield f'<line class="{"zero" if tick == 0 else "grid"}" x1="{_LEFT}" x2="{_RIGHT}" y1="{at}" y2="{at}"/>'
        yield f'<text class="tick" x="{_LEFT - 7}" y="{at}" dy=".34em" text-anchor="end">{label}</text>'


def _horizontal_ticks(chart: Chart, x: Axis) -> Iterator[str]:
    labels = chart.categories or tick_labels(x.ticks)
    for tick, label in zip(x.ticks, labels, strict=True):
        yield f'<text class="tick" x="{x(tick):.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{escape(label)}</text>'
    middle = (_LEFT + _RIGHT) / 2
    yield f'<text class="axis" x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{escape(chart.x_label)}</text>'


def _series_marks(series: Series, x: Axis, y: Axis) -> Iterator[str]:
    if series.bar_width is not None:
        yield from _bar_marks(_finite_points(series), series.bar_width, x, y)
        return
    interval = _interval(series)
    if series.markers:
        for at, low, high in interval:
            yield f'<line class="bar" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"/>'
    elif interval:
        edge = [(at, high) for at, _, high in interval] + [(at, low) for at, low, _ in reversed(interval)]
        yield f'<polygon class="band" points="{_coordinates(edge, x, y)}"/>'
    if series.line:
        yield from _line_marks(series, x, y)
    if series.markers:
        yield from (_dot(x(at), y(value)) for at, value in _finite_points(series))


def _bar_marks(points: list[Point], width: float, x: Axis, y: Axis) -> Iterator[str]:
    """Bars side by side and an outline over them, so that two series stay legible where they overlap."""
    for at, value in points:
        left, right, (top, bottom) = x(at - width / 2), x(at + width / 2), sorted((y(value), y(0.0)))
        yield (
            f'<rect class="column" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{bottom - top:.1f}"/>'
        )
    outline = [end for at, value in points for end in ((at - width / 2, value), (at + width / 2, value))]
    yield f'<polyline points="{_coordinates(outline, x, y)}"/>'


def _line_marks(series: Series, x: Axis, y: Axis) -> Iterator[str]:
    for segment in _segments(series):
        if len(segment) > 1:
            yield f'<polyline points="{_coordinates(_thinned(segment), x, y)}"/>'
        elif not series.markers:
            yield _dot(x(segment[0][0]), y(segment[0][1]))


def _segments(series: Series) -> list[list[Point]]:
    """The runs of points between non-finite values."""
    segments: list[list[Point]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if _is_drawable(x) and _is_drawable(y):
            segments[-1].append((x, y))
        elif segments[-1]:
            segments.append([])
    return [segment for segment in segments if segment]


def _thinned(points: list[Point]) -> list[Point]:
    """At most about 300 points: the lowest and the highest of each stretch, so that no spike is lost."""
    if len(points) <= _MAX_DRAWN_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / _MAX_DRAWN_POINTS)
    kept: list[Point] = []
    for start in range(0, len(points), stretch):
        part = range(start, min(start + stretch, len(points)))
        extremes = {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(extremes)]
    return kept


def _coordinates(points: Iterable[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)


def _dot(at: float, value: float) -> str:
    return f'<circle cx="{at:.1f}" cy="{value:.1f}" r="3.2"/>'


def _reference_marks(line: ReferenceLine, x: Axis, y: Axis) -> Iterator[str]:
    label = escape(line.label)
    if line.axis == "y":
        at = f"{y(line.value):.1f}"
        yield f'<line class="reference" x1="{_LEFT}" x2="{_RIGHT}" y1="{at}" y2="{at}"/>'
        yield f'<text class="reference" x="{_RIGHT}" y="{at}" dy="-.4em" text-anchor="end">{label}</text>'
    else:
        at = f"{x(line.value):.1f}"
        # A label stands on the side that has room for it.
        side = 'dx="-.4em" text-anchor="end"' if 2 * x(line.value) > _LEFT + _RIGHT else 'dx=".4em"'
        yield f'<line class="reference" x1="{at}" x2="{at}" y1="{_TOP}" y2="{_BOTTOM}"/>'
        yield f'<text class="reference" x="{at}" {side} y="{_TOP + 9}">{label}</text>'


def _identity_marks(label: str, x: Axis, y: Axis) -> Iterator[str]:
    """The part of y = x that both axes show, its label above its upper end."""
    low, high = max(x.low, y.low), min(x.high, y.high)
    if not label or low >= high:
        return
    right, top = f"{x(high):.1f}", f"{y(high):.1f}"
    yield f'<line class="reference" x1="{x(low):.1f}" y1="{y(low):.1f}" x2="{right}" y2="{top}"/>'
    yield f'<text class="reference" x="{right}" y="{top}" dy="-.5em" text-anchor="end">{escape(label)}</text>'


def _hover_marks(chart: Chart, x: Axis, y: Axis) -> list[str]:
    """Invisible columns, each with a tooltip of every series' value there; dots with their own where x goes back."""
    ascending = all(a < b for series in chart.series for a, b in pairwise(series.x))
    if not ascending or chart.categories:
        points = [(series, point) for series in chart.series for point in _finite_points(series)]
        return [_hover_dot(chart, series.name, point, x, y) for series, point in points]
    values = sorted({at for series in chart.series for at, _ in _finite_points(series)})
    stride = math.ceil(len(values) / _MAX_HOVER_COLUMNS)
    shown = values[::stride]
    edges = [_LEFT, *(x((a + b) / 2) for a, b in pairwise(shown)), _RIGHT]
    columns = zip(shown, pairwise(edges), strict=True)
    return [_hover_column(chart, at, start, end, x, y) for at, (start, end) in columns]


def _hover_column(chart: Chart, at: float, start: float, end: float, x: Axis, y: Axis) -> str:
    lines, dots = [f"{chart.x_label} {format_value(at)}"], list[str]()
    for series, colour in _coloured(chart.series):
        if (value := _value_at(series, at)) is not None:
            lines.append(f"{series.name}: {format_value(value)}")
            dots.append(f'<g class="c{colour}">{_dot(x(at), y(value))}</g>')
    rect = f'<rect x="{start:.1f}" y="{_TOP}" width="{end - start:.1f}" height="{_BOTTOM - _TOP}"/>'
    guide = f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{_TOP}" y2="{_BOTTOM}"/>'
    return f'<g class="hover">{rect}{guide}{"".join(dots)}<title>{escape(chr(10).join(lines))}</title></g>'


def _hover_dot(chart: Chart, name: str, point: Point, x: Axis, y: Axis) -> str:
    at, value = point
    where = chart.categories[int(at)] if chart.categories else f"{chart.x_label} {format_value(at)}"
    title = escape(f"{name}\n{where}\n{chart.y_label} {format_value(value)}")
    target = f'<circle class="target" cx="{x(at):.1f}" cy="{y(value):.1f}" r="9"/>'
    return f'<g class="hover">{target}<title>{title}</title></g>'


def _value_at(series: Series, at: float) -> float | None:
    index = bisect_left(series.x, at)
    if index == len(series.x) or series.x[index] != at or not _is_drawable(series.y[index]):
        return None
    return series.y[index]


def _in_words(chart: Chart) -> str:
    """First and last value of each line, for readers who cannot see the chart."""
    ends: list[str] = []
    for series in chart.series:
        points = _finite_points(series)
        if points and not series.faint:
            ends.append(f"{series.name} from {format_value(points[0][1])} to {format_value(points[-1][1])}")
    return "; ".join(ends) or "no finite values"
