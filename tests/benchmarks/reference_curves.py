"""Metrics of a run -> the few curves that a reference keeps, short enough to store."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_DIGITS = 5

Curve = list[list[float]]
"""[step, value] for each step that logged a finite value."""


def curves_of(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> dict[str, Curve]:
    """The named metrics over steps; a metric that was never logged is an empty curve."""
    return {
        name: [[row["step"], row[key]] for row in rows if key in row and math.isfinite(row[key])]
        for name, key in keys.items()
    }


def over(curves: Mapping[str, Curve], x: str, y: str) -> tuple[list[float], list[float]]:
    """One curve against another, at the steps that both have."""
    xs, ys = by_step(curves[x]), by_step(curves[y])
    steps = [step for step in xs if step in ys]
    return [xs[step] for step in steps], [ys[step] for step in steps]


def by_step(curve: Curve) -> dict[int, float]:
    """A curve's values by step."""
    return {int(step): value for step, value in curve}


def rounded(value: Any) -> Any:
    """The same tree with every number at five digits; numbers that are not finite become None, as in JSON."""
    if isinstance(value, dict):
        return {key: rounded(branch) for key, branch in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(branch) for branch in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    return value
