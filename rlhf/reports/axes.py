"""Axes of a chart: which range to show, where to put ticks, how to write them. Knows nothing of SVG or of series."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rlhf.runtime.metric_registry import format_value


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from values in [low, high] to drawing units in [start, end], with its ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: list[float] = field(default_factory=list[float])

    def __call__(self, value: float) -> float:
        """Drawing position of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def horizontal_axis(xs: Sequence[float], start: float, end: float) -> Axis:
    """An axis from the first to the last value, with whole ticks where all values are whole."""
    low, high = _widened(min(xs), max(xs))
    whole = all(float(x).is_integer() for x in xs)
    return Axis(low, high, start, end, nice_ticks(low, high, 6, integers=whole))


def category_axis(count: int, start: float, end: float) -> Axis:
    """An axis with a tick for each of `count` categories, at 0, 1, 2, ..."""
    return Axis(-0.5, count - 0.5, start, end, [float(index) for index in range(count)])


def vertical_axis(ys: Sequence[float], start: float, end: float) -> Axis:
    """An axis with some air around the values; it starts at zero where they come near zero."""
    low, high = _widened(min(ys), max(ys))
    # Values that come near zero are read against zero; others would lose their shape in an empty chart.
    if 0 <= low < 0.4 * high:
        low = 0.0
    elif 0.4 * low < high <= 0:
        high = 0.0
    margin = 0.06 * (high - low)
    low, high = low - margin * (low != 0), high + margin * (high != 0)
    return Axis(low, high, start, end, nice_ticks(low, high, 5))


def _widened(low: float, high: float) -> tuple[float, float]:
    """The range, or one around its only value."""
    if high - low > 1e-12 * max(abs(low), abs(high)):
        return low, high
    half = 0.5 * abs(low) or 0.5
    return low - half, high + half


def nice_ticks(low: float, high: float, count: int = 5, *, integers: bool = False) -> list[float]:
    """Round values inside [low, high], about `count`, at a step of 1, 2, 2.5 or 5 times a power of ten.

    With `integers` the step is a whole number. Needs low < high.
    """
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    if integers:
        step = max(1.0, math.ceil(step - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [multiple * step for multiple in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Texts of evenly spaced ticks: as many decimals as tell them apart; k, M, G or an exponent where they are long."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    step = min((b - a for a, b in pairwise(ticks)), default=largest or 1.0)
    divisor, suffix = next(
        (pair for pair in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if largest >= 10 * pair[0]), (1.0, "")
    )
    if largest < 1e-3 or largest >= 1e13:
        return [format_value(tick, trim=True) for tick in ticks]
    decimals = _decimals(step / divisor)
    return ["0" if tick == 0 else f"{tick / divisor:.{decimals}f}{suffix}" for tick in ticks]


def _decimals(step: float) -> int:
    """Fewest decimals that write a multiple of 1, 2, 2.5 or 5 times a power of ten exactly."""
    return next((d for d in range(10) if math.isclose(round(step, d), step, rel_tol=1e-6)), 10)
