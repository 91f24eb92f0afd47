"""Scripted histories of metrics, and what a rule says about them."""

import random
from collections.abc import Mapping, Sequence

from rlhf.runtime.health.monitor import HealthMonitor
from rlhf.runtime.health.rule import Alert, Rule

Columns = Mapping[str, Sequence[float | None]]


def rows_of(columns: Columns) -> list[dict[str, float]]:
    """One row a step; None where a step does not log the metric."""
    (length,) = {len(values) for values in columns.values()}
    return [
        {key: value for key, values in columns.items() if (value := values[index]) is not None}
        for index in range(length)
    ]


def alerts_of(rule: Rule, columns: Columns) -> list[Alert]:
    """Every alert of a run with these columns, whose steps count from 1."""
    monitor = HealthMonitor([rule])
    return [alert for step, row in enumerate(rows_of(columns), start=1) for alert in monitor.observe(step, row)]


def noisy(levels: Sequence[float], spread: float, *, seed: int = 0) -> list[float]:
    """`levels` with Gaussian noise."""
    generator = random.Random(seed)
    return [level + generator.gauss(0.0, spread) for level in levels]


def line(start: float, end: float, count: int) -> list[float]:
    """`count` numbers from `start` to `end`."""
    return [start + (end - start) * index / (count - 1) for index in range(count)]
