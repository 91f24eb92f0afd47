"""The recent numbers of a run, as health rules read them. Owns the window; knows no rule.

A function of the rows of metrics.jsonl and of nothing else, so a resumed run rebuilds it by reading them again.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median

REMEMBERED_STEPS = 1000
"""Older values are forgotten, so that a long run stays cheap; the first value of each metric is kept for ever."""

Point = tuple[int, float]


class History:
    """What each metric was, oldest first. Only finite values count, except in `newest`."""

    def __init__(self) -> None:
        self.newest: Mapping[str, float] = {}
        """The newest step as it was logged."""
        self._points: defaultdict[str, list[Point]] = defaultdict(list)
        self._first: dict[str, float] = {}

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step; not every step has every metric."""
        self.newest = metrics
        for key, value in metrics.items():
            if math.isfinite(value):
                self._first.setdefault(key, value)
                points = self._points[key]
                points.append((step, value))
                if len(points) > REMEMBERED_STEPS:
                    del points[0]

    def points(self, key: str) -> Sequence[Point]:
        """Steps and values of a metric; empty where it was never logged."""
        return self._points.get(key, ())

    def last(self, key: str, count: int) -> list[float]:
        """The newest `count` values; empty while there are fewer, so that no rule judges a run that has just begun."""
        points = self.points(key)
        return [value for _, value in points[-count:]] if len(points) >= count else []

    def mean(self, key: str, count: int) -> float:
        """Mean of the newest `count` values; NaN, which no comparison finds wrong, while there are fewer."""
        values = self.last(key, count)
        return fmean(values) if values else math.nan

    def newest_and_median(self, key: str, *, steps: int, at_least: int) -> tuple[float, float] | None:
        """The newest value, and the median of the `steps` before it; None while those are fewer than `at_least`."""
        *before, newest = [value for _, value in self.points(key)[-steps - 1 :]] or [math.nan]
        return (newest, median(before)) if len(before) >= at_least else None

    def first(self, key: str) -> float:
        """The first value of a run: for a rollout metric that of the policy before any update; NaN before it."""
        return self._first.get(key, math.nan)


def rolling_means(values: Sequence[float], window: int) -> list[float]:
    """Mean of every `window` neighbours, oldest first."""
    return [sum(values[start : start + window]) / window for start in range(len(values) - window + 1)]


def step_noise(values: Sequence[float]) -> float:
    """Standard deviation of a value around its slowly moving level: sqrt(mean(d^2) / 2) of neighbours' differences d.

    (Von Neumann 1941: a trend, which would inflate the plain standard deviation, cancels in the differences.)
    """
    differences = [after - before for before, after in pairwise(values)]
    return math.sqrt(fmean(difference**2 for difference in differences) / 2) if differences else 0.0
