"""The report page that any training stage gets for free: every logged number as a small chart, samples, configuration.

Owns the reading of a run folder into a page. A stage with more to say adds sections of its own to the page.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from rlhf.reports.charts import Chart, Series
from rlhf.reports.frontier import run_frontier
from rlhf.reports.health import alerts_in, health_sections, health_verdicts
from rlhf.reports.over_optimisation import over_optimisation
from rlhf.reports.page import Cell, Headline, ReportPage, Section, Table, Verdict, is_number
from rlhf.reports.record import record_sections, setting_sections
from rlhf.reports.samples import sample_sections
from rlhf.runtime.health.monitor import HEALTH_SUMMARY
from rlhf.runtime.health.rule import Alert
from rlhf.runtime.health.training import NON_FINITE_METRIC
from rlhf.runtime.metric_registry import GROUPS, find_metric, registry_order
from rlhf.runtime.run_folder import Row, RunFiles

_GROUP_TITLES = {"rm": "Reward model", "eval": "Evaluation", "perf": "Performance", "sync": "Weight sync"}
_SMOOTH_ABOVE_STEPS = 40
_SMOOTHING_WINDOWS = 20
_SHOWN_HEADLINES = 8
_SHOWN_NON_FINITE = 5


def generic_training_page(run_folder_path: str | Path, title: str = "") -> ReportPage:
    """A page of a run folder's metrics, samples, summary, configuration and environment.

    Works while the run is still going, and for one that stopped early.

    Args:
        run_folder_path: The run folder; none of its files is needed.
        title: Headline of the page; empty takes the folder's name.
    """
    files = RunFiles(run_folder_path)
    rows, summary, alerts = files.read_metrics(), files.read_summary(), alerts_in(files)
    stops, exploitation = over_optimisation(rows, files.read_config() if files.config_path.exists() else {})
    sections = [
        *setting_sections(files),
        *_summary_sections(summary),
        *exploitation,
        *run_frontier(rows),
        *health_sections(alerts),
        *sample_sections(files.read_samples()),
        *metric_sections(rows),
    ]
    return ReportPage(
        title=title or files.path.resolve().name,
        subtitle=_subtitle(rows),
        verdicts=[*stops, *_health(alerts, summary), *_verdicts(_untold(rows, alerts), finished=bool(summary))],
        headlines=_headlines(summary),
        sections=[*sections, *record_sections(files)],
    )


def metric_sections(rows: Sequence[Row]) -> list[Section]:
    """A section for each metric group, with a chart for each metric that moved; the others end in one table."""
    keys = sorted(
        {key for row in rows for key in row if key != "step" and not _is_interval_end(key)}, key=registry_order
    )
    moving = [key for key in keys if _moves(rows, key)]
    groups = dict.fromkeys(key.split("/")[0] for key in moving)
    sections = [_group_section(rows, group, [key for key in moving if key.split("/")[0] == group]) for group in groups]
    constant = [key for key in keys if key not in set(moving)]
    return sections + ([_constant_section(rows, constant)] if constant else [])


def metric_chart(rows: Sequence[Row], key: str) -> Chart:
    """One metric over steps: with its `_low` and `_high` as a band, or a centred mean where it is long and noisy."""
    steps, values = _column(rows, key)
    window = 2 * (len(values) // (2 * _SMOOTHING_WINDOWS)) + 1
    metric = find_metric(key)
    if len(values) <= _SMOOTH_ABOVE_STEPS or not _is_noisy(values):
        low, high = (_column(rows, key + end)[1] or None for end in ("_low", "_high"))
        whole = low is not None and high is not None and len(low) == len(high) == len(values)
        series = [Series(key, steps, values, low if whole else None, high if whole else None)]
    else:
        smooth = Series(f"mean of {window} steps", steps, centred_mean(values, window))
        series = [Series("step", steps, values, faint=True), smooth]
    unit = metric.unit if metric and metric.unit != "1" else ""
    return Chart(key, "step", unit, series, description=metric.description if metric else "")


def centred_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over `window` (odd) neighbours, itself in the middle; fewer at the ends, and without non-finite ones."""
    half = window // 2
    means: list[float] = []
    for index in range(len(values)):
        near = [value for value in values[max(index - half, 0) : index + half + 1] if math.isfinite(value)]
        means.append(sum(near) / len(near) if near and math.isfinite(values[index]) else math.nan)
    return means


def _is_noisy(values: Sequence[float]) -> bool:
    """Whether more than a quarter of the steps turn back; a count or a schedule does not and needs no mean."""
    turns = sum((b - a) * (c - b) < 0 for a, b, c in zip(values, values[1:], values[2:], strict=False))
    return turns > len(values) / 4


def _group_section(rows: Sequence[Row], group: str, keys: Sequence[str]) -> Section:
    title = _GROUP_TITLES.get(group, group.capitalize())
    return Section(title, GROUPS.get(group, ""), charts=[metric_chart(rows, key) for key in keys])


def _constant_section(rows: Sequence[Row], keys: Sequence[str]) -> Section:
    cells: list[list[Cell]] = []
    for key in keys:
        metric = find_metric(key)
        cells.append(
            [key, _column(rows, key)[1][0], metric.unit if metric else "", metric.description if metric else ""]
        )
    text = "Numbers that were the same at every step."
    return Section("Unchanged", text, tables=[Table(("metric", "value", "unit", "meaning"), cells)])


def _column(rows: Sequence[Row], key: str) -> tuple[list[float], list[float]]:
    """Steps at which a metric was logged, and its values."""
    pairs = [(cast(float, row["step"]), cast(float, row[key])) for row in rows if key in row]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _moves(rows: Sequence[Row], key: str) -> bool:
    return len(set(_column(rows, key)[1])) > 1


def _is_interval_end(key: str) -> bool:
    base = key.removesuffix("_low").removesuffix("_high")
    return base != key and find_metric(base) is not None


def _subtitle(rows: Sequence[Row]) -> str:
    if not rows:
        return "No step was logged."
    seconds = sum(value for value in _column(rows, "time/step")[1] if math.isfinite(value))
    duration = f" in {_duration(seconds)}" if seconds else ""
    return f"{len(rows)} steps logged, the last is {rows[-1]['step']}{duration}."


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _health(alerts: Sequence[Alert], summary: Row) -> list[Verdict]:
    if HEALTH_SUMMARY in summary and not alerts:
        return [Verdict("No health rule found trouble.", "good")]
    return health_verdicts(alerts)


def _untold(rows: Sequence[Row], alerts: Sequence[Alert]) -> Sequence[Row]:
    """The rows whose non-finite values no alert has told; runs of earlier versions have no alerts."""
    return [] if any(alert.rule == NON_FINITE_METRIC.name for alert in alerts) else rows


def _verdicts(rows: Sequence[Row], *, finished: bool) -> list[Verdict]:
    verdicts = [
        Verdict(f"{key} was not finite at step {row['step']}.", "bad")
        for row in rows
        for key, value in row.items()
        if isinstance(value, float) and not math.isfinite(value) and key != "critic/explained_var"
    ][:_SHOWN_NON_FINITE]
    if not finished:
        verdicts.append(Verdict("The run has not reached its end: there is no summary yet.", "warning"))
    return verdicts


def _headlines(summary: Row) -> list[Headline]:
    numbers = [(key, value) for key, value in summary.items() if is_number(cast(Cell, value))]
    return [Headline(_readable(key), cast(Cell, value)) for key, value in numbers[:_SHOWN_HEADLINES]]


def _readable(key: str) -> str:
    return key.split("/")[-1].replace("_", " ") if "/" not in key else key


def _summary_sections(summary: Row) -> list[Section]:
    """A table of the summary's nested parts: a row each, their fields as columns."""
    parts = {
        name: cast(dict[str, Cell], part)
        for name, part in summary.items()
        if isinstance(part, dict) and name != HEALTH_SUMMARY
    }
    fields = list(dict.fromkeys(key for part in parts.values() for key in part))
    if not fields:
        return []
    cells = [[name, *(_plain(part.get(key)) for key in fields)] for name, part in parts.items()]
    return [Section("Summary", tables=[Table(("", *map(_readable, fields)), cells)])]


def _plain(value: object) -> Cell:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
