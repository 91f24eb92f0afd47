"""Reward over KL: what a PPO run gained for the distance it went, step by step, and how runs compare in that.

Of two policies at the same distance the higher is trained better. Owns the charts; numbers are those of metrics.jsonl.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import cast

from rlhf.reports.charts import Chart, Series
from rlhf.reports.page import Cell, Section, Table
from rlhf.runtime.run_folder import Row

KL, SCORES, COEFFICIENT = "objective/kl", "objective/scores", "objective/kl_coef"
_KL_LABEL = "KL from the reference, nats an answer"
_FEWEST_POINTS = 3
_LAST_SHARE = 0.2
"""Share of a run's steps, at its end, that is averaged to one point."""
_MAX_STEPS = 40
"""Longer runs are averaged to so many points."""
_ONE_RUN = """A point for each step, or for the mean of some: the score that is trained on over the distance from the
reference. Where the curve turns flat, further steps buy distance without reward."""
_RUNS = """A point for each run: the mean of its last fifth of steps. Runs that differ in the KL coefficient or target
draw the frontier between reward and distance; a point below the line through the others is a worse run."""


def run_frontier(rows: Sequence[Row]) -> list[Section]:
    """Reward over KL along one run; nothing for runs that log no KL, or too few steps of it."""
    points = _finite(rows)
    if len(points) < _FEWEST_POINTS:
        return []
    way = _way("steps in their order", points, markers=True)
    chart = Chart("Reward over KL", _KL_LABEL, "score", [way], description=_spent(list(zip(way.x, way.y, strict=True))))
    return [Section("Reward over KL", " ".join(_ONE_RUN.split()), charts=[chart])]


def runs_frontier(runs: Mapping[str, Sequence[Sequence[Row]]]) -> list[Section]:
    """Where several experiments end, each with all its repeats; nothing where fewer than two log a KL.

    Args:
        runs: Metrics of every repeat, by the name of the experiment.
    """
    ends = {name: [end for rows in repeats if (end := _end(rows)) is not None] for name, repeats in runs.items()}
    ends = {name: points for name, points in ends.items() if points}
    if len(ends) < 2:
        return []
    series = [
        Series(name, [kl for kl, _, _ in points], [score for _, score, _ in points], markers=True, line=False)
        for name, points in ends.items()
    ]
    rows: list[list[Cell]] = [[name, *_means(points)] for name, points in ends.items()]
    table = Table(
        ("run", "KL coefficient at the end", "KL", "score"), sorted(rows, key=lambda row: cast(float, row[2]))
    )
    ways = [_way(name, _finite(runs[name][0])) for name in ends]
    charts = [
        Chart("Where runs end", _KL_LABEL, "score", series),
        Chart("How they got there", _KL_LABEL, "score", ways, description="The first seed of each."),
    ]
    return [Section("Reward over KL", " ".join(_RUNS.split()), tables=[table], charts=charts)]


def _way(name: str, points: Sequence[tuple[float, float]], *, markers: bool = False) -> Series:
    """Score over KL in the order of the steps, averaged over neighbours where there are many."""
    stretch = math.ceil(len(points) / _MAX_STEPS)
    parts = [points[start : start + stretch] for start in range(0, len(points), stretch)]
    kls = [mean(kl for kl, _ in part) for part in parts]
    return Series(name, kls, [mean(score for _, score in part) for part in parts], markers=markers)


def _means(points: Sequence[tuple[float, float, float | None]]) -> list[Cell]:
    """KL coefficient (None where a run logged none), KL and score, over the repeats."""
    coefficients = [coefficient for _, _, coefficient in points if coefficient is not None]
    means = (mean(kl for kl, _, _ in points), mean(score for _, score, _ in points))
    return [mean(coefficients) if coefficients else None, *means]


def _end(rows: Sequence[Row]) -> tuple[float, float, float | None] | None:
    """Means of KL, score and coefficient over the last steps; None for a run that logs no KL."""
    points = _finite(rows)
    if not points:
        return None
    last = points[-max(1, round(_LAST_SHARE * len(points))) :]
    coefficients = [float(cast(float, row[COEFFICIENT])) for row in rows if COEFFICIENT in row]
    return (
        mean(kl for kl, _ in last),
        mean(score for _, score in last),
        coefficients[-1] if coefficients else None,
    )


def _finite(rows: Sequence[Row]) -> list[tuple[float, float]]:
    pairs = [(cast(float, row[KL]), cast(float, row[SCORES])) for row in rows if KL in row and SCORES in row]
    return [(kl, score) for kl, score in pairs if math.isfinite(kl) and math.isfinite(score)]


def _spent(means: Sequence[tuple[float, float]]) -> str:
    """What the halves of the way brought, in words."""
    half = len(means) // 2
    (first, start), (middle, between), (last, end) = means[0], means[half], means[-1]
    return (
        f"First half of the steps: {between - start:+.2f} for {middle - first:.1f} nats; "
        f"second half: {end - between:+.2f} for {last - middle:.1f} nats."
    )
