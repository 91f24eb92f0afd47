"""Several runs on one page: curves over each other, seeds as bands, final numbers and settings side by side.

Owns what is compared: which runs are repeats of each other, how their curves become one, and in which keys of their
configurations the others differ. Reads run folders only.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlhf.reports.charts import Chart, Series
from rlhf.reports.frontier import runs_frontier
from rlhf.reports.page import Cell, ReportPage, Section, Table, format_cell, is_number
from rlhf.runtime.metric_registry import GROUPS, find_metric, registry_order
from rlhf.runtime.run_folder import Row, RunFiles
from rlhf.runtime.saved_config import leaves

_OWN_OF_A_RUN = ("run_dir", "tracking", "seed")
"""Keys in which repeats of one experiment differ."""
_MAX_LINES = 6
"""Colours of a chart."""


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, read.

    Attributes:
        name: Shortest part of its path that tells it from the others.
        settings: Leaves of its configuration, by dotted key.
        rows: Metrics by step.
        numbers: Numeric leaves of its summary, by dotted key; empty before its end.
    """

    name: str
    settings: Row
    rows: Sequence[Row]
    numbers: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Repeats:
    """Runs that differ in their seed alone."""

    name: str
    runs: Sequence[Run]


def comparison_page(paths: Sequence[str | Path]) -> ReportPage:
    """The page of two runs or more.

    Raises:
        ValueError: a path holds no run, a run is named twice, or there are more experiments than colours.
    """
    groups = group_repeats(read_runs(paths))
    if len(groups) > _MAX_LINES:
        raise ValueError(f"runs: {len(groups)} experiments are more than the {_MAX_LINES} that a chart can tell apart")
    counts = ", ".join(f"{group.name} ({len(group.runs)})" for group in groups)
    return ReportPage(
        title="Comparison of runs",
        subtitle=f"{len(paths)} runs of {len(groups)} experiments; runs that differ in the seed alone are one line, "
        f"with the range over seeds as its band: {counts}.",
        sections=[
            *_summary_section(groups),
            *_settings_section(groups),
            *runs_frontier({group.name: [run.rows for run in group.runs] for group in groups}),
            *_chart_sections(groups),
        ],
    )


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Reads every run folder.

    Raises:
        ValueError: naming the path that holds no run, or that is given twice.
    """
    names = _short_names([Path(path).resolve() for path in paths])
    runs: list[Run] = []
    for path, name in zip(paths, names, strict=True):
        files = RunFiles(path)
        if not files.config_path.exists():
            raise ValueError(f"runs: '{path}' holds no run (no config.yaml); name a run folder")
        runs.append(Run(name, leaves(files.read_config()), files.read_metrics(), dict(_numbers(files.read_summary()))))
    return runs


def group_repeats(runs: Sequence[Run]) -> list[Repeats]:
    """Runs with the same settings up to the seed, together, in the order of their first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        compared = {key: value for key, value in run.settings.items() if not _is_own(key)}
        groups.setdefault(json.dumps(compared, sort_keys=True), []).append(run)
    return [Repeats(members[0].name, members) for members in groups.values()]


def curve(group: Repeats, key: str) -> Series:
    """Mean over the seeds of one metric, where every seed has logged it, with the range as a band.

    A run that stopped early ends the curve of its experiment.
    """
    columns = [{cast(int, row["step"]): cast(float, row[key]) for row in run.rows if key in row} for run in group.runs]
    steps = sorted(set.intersection(*(set(column) for column in columns)))
    values = np.array([[column[step] for step in steps] for column in columns], float).reshape(len(columns), -1)
    mean = values.mean(axis=0).tolist()
    if len(columns) == 1:
        return Series(group.name, steps, mean)
    return Series(group.name, steps, mean, values.min(axis=0).tolist(), values.max(axis=0).tolist())


def _chart_sections(groups: Sequence[Repeats]) -> Iterator[Section]:
    keys = {key for group in groups for run in group.runs for row in run.rows for key in row} - {"step"}
    by_group: dict[str, list[Chart]] = {}
    for key in sorted(keys, key=registry_order):
        series = [line for line in (curve(group, key) for group in groups) if line.x]
        if len({value for line in series for value in line.y}) > 1:
            by_group.setdefault(key.partition("/")[0], []).append(_chart(key, series))
    for name, charts in by_group.items():
        yield Section(name.capitalize(), GROUPS.get(name, ""), charts=charts)


def _chart(key: str, series: Sequence[Series]) -> Chart:
    metric = find_metric(key)
    unit = metric.unit if metric and metric.unit != "1" else ""
    return Chart(key, "step", unit, series, description=metric.description if metric else "")


def _summary_section(groups: Sequence[Repeats]) -> Iterator[Section]:
    keys = list(dict.fromkeys(key for group in groups for run in group.runs for key in run.numbers))
    rows: list[list[Cell]] = [[key, *(_over_seeds(group, key) for group in groups)] for key in keys]
    if rows:
        note = "Mean over the seeds that have ended; where there are several, their range."
        yield Section("Final numbers", tables=[Table(("", *(group.name for group in groups)), rows, note=note)])


def _over_seeds(group: Repeats, key: str) -> str:
    values = [run.numbers[key] for run in group.runs if key in run.numbers]
    if len(values) < 2:
        # As text: the numbers of a column have nothing in common, so they share no count of decimals.
        return format_cell(values[0] if values else None)
    return f"{np.mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def _settings_section(groups: Sequence[Repeats]) -> Iterator[Section]:
    settings = [group.runs[0].settings for group in groups]
    keys = dict.fromkeys(key for one in settings for key in one if not _is_own(key))
    rows: list[list[Cell]] = [
        [key, *(_as_cell(one, key) for one in settings)] for key in keys if _differs(key, settings)
    ]
    if rows:
        columns = ("", *(group.name for group in groups))
        yield Section("Settings that differ", tables=[Table(columns, rows)])


def _differs(key: str, settings: Sequence[Row]) -> bool:
    return len({json.dumps(one.get(key), sort_keys=True) for one in settings}) > 1


def _as_cell(settings: Row, key: str) -> str:
    # As text: a rate of 0.00001 beside one of 3 is to be read, not lined up.
    return json.dumps(settings[key]) if key in settings else "-"


def _is_own(key: str) -> bool:
    return key.split(".")[0] in _OWN_OF_A_RUN


def _numbers(summary: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in summary.items():
        if isinstance(value, dict):
            yield from _numbers(cast(Mapping[str, Any], value), f"{prefix}{key}.")
        elif is_number(value):
            yield f"{prefix}{key}", value


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Paths without the folders that all of them share.

    Raises:
        ValueError: if a path comes twice.
    """
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"runs: '{path}' is named twice; name each run once")
    shared = Path(os.path.commonpath([path.parent for path in paths]))
    return [str(path.relative_to(shared)) for path in paths]
