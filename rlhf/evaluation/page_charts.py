"""Charts of an evaluation: from the plain values of summary.json to what `rlhf.reports.charts` draws."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.evaluation.gold_proxy import CurveFit, curve_points
from rlhf.reports.charts import Chart, ReferenceLine, Series

Values = Mapping[str, Any]

_SQRT_KL = "square root of the KL, nats an answer"


def win_rate_chart(judges: Mapping[str, Values]) -> Chart:
    """Every judge's win rate, as counted and at equal length."""
    places = list(range(len(judges)))
    series = [
        _with_interval(label, places, list(judges.values()), key)
        for label, key in (("as counted", "win_rate"), ("at equal length", "length_controlled_win_rate"))
    ]
    return Chart(
        "Win rate by judge",
        "judge",
        "share of comparisons",
        series,
        [ReferenceLine(0.5, "no difference")],
        shown=(0.0, 1.0),
        categories=list(judges),
        description="Bars are 95 % intervals over prompts.",
    )


def best_of_n_charts(rows: Sequence[Values], summary: Values, proxy: str) -> list[Chart]:
    """Win rate and scores over the KL bound of best-of-n, with the candidate where it is."""
    bounds = [one["kl_bound"] for one in rows]
    here = {f"{key}{end}": summary[f"{key}{end}"] for key in ("win_rate",) for end in ("", "_low", "_high")}
    wins = [
        _with_interval("best of n", bounds, rows, "win_rate", line=True),
        _with_interval("candidate", [summary["kl"]], [here], "win_rate"),
    ]
    scores = [
        Series(
            name,
            [math.sqrt(bound) for bound in bounds],
            [one["components"][name]["mean"] for one in rows],
            markers=True,
        )
        for name in _proxy_first(rows[0]["components"], proxy)
    ]
    curves = [(peak, _fit_series(peak)) for peak in summary.get("gold_peaks", ()) if peak["form"] == "best_of_n"]
    return [
        Chart(
            "Best of n beside the candidate",
            "KL, nats an answer",
            "win rate against the baseline",
            wins,
            [ReferenceLine(0.5, "baseline")],
            description="The KL of best of n is its bound, that of the candidate is measured.",
        ),
        Chart(
            "Scores of the best of n",
            _SQRT_KL,
            "score",
            [*scores, *(series for _, series in curves)],
            [mark for peak, _ in curves for mark in stop_mark(peak)],
            description="Lines without dots: fits of Gao et al. 2023, d (alpha - beta d).",
        ),
    ]


def model_charts(models: Mapping[str, Values], peaks: Sequence[Values], proxy: str | None) -> list[Chart]:
    """Scores of several models over their distance."""
    ordered = sorted(models.values(), key=lambda one: one["kl"])
    distances = [math.sqrt(max(one["kl"], 0.0)) for one in ordered]
    names = _proxy_first(ordered[0]["components"], proxy)
    scores = [Series(name, distances, [one["components"][name] for one in ordered], markers=True) for name in names]
    curves = [peak for peak in peaks if peak["form"] == "rl"]
    frontier = _with_interval("models", [one["kl"] for one in ordered], ordered, "win_rate")
    return [
        Chart("Win rate over KL", "KL, nats an answer", "win rate against the baseline", [frontier]),
        Chart(
            "Scores over the distance",
            _SQRT_KL,
            "score",
            [*scores, *map(_fit_series, curves)],
            [mark for peak in curves for mark in stop_mark(peak)],
            description="Lines without dots: fits of Gao et al. 2023, d (alpha - beta log d)." if curves else "",
        ),
    ]


def task_chart(tasks: Sequence[Values]) -> Chart:
    """Difference of each task, after minus before."""
    numbers = list(range(1, len(tasks) + 1))
    return Chart(
        "What changed by task",
        "row of the table",
        "accuracy after minus before",
        [_with_interval("difference", numbers, tasks, "difference")],
        [ReferenceLine(0.0, "as before")],
        description="Bars are 95 % intervals over questions.",
    )


def stop_mark(peak: Values) -> list[ReferenceLine]:
    """A line where a gold reward peaks, if the points go beyond."""
    if not peak["is_passed"]:
        return []
    label = "stop here" if peak["is_certain"] else f"peak of {peak['gold']}, unsure"
    return [ReferenceLine(math.sqrt(peak["kl"]), label, axis="x")]


def fit_of(peak: Values) -> CurveFit:
    """The fit that a peak was read from."""
    return CurveFit(peak["form"], peak["start"], peak["alpha"], peak["beta"])


def _fit_series(peak: Values) -> Series:
    return Series(f"fit of {peak['gold']}", *curve_points(fit_of(peak), peak["furthest_kl"]))


def _proxy_first(names: Mapping[str, Any], proxy: str | None) -> list[str]:
    return sorted(names, key=lambda name: name != proxy)


def _with_interval(label: str, x: Sequence[float], rows: Sequence[Values], key: str, *, line: bool = False) -> Series:
    y, low, high = ([one[f"{key}{end}"] for one in rows] for end in ("", "_low", "_high"))
    return Series(label, x, y, low, high, markers=True, line=line)
