"""What `rlhf forgetting` tells at its end: a table on the terminal, and report.html. Owns words and layout."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from rich.table import Table as ConsoleTable

from rlhf.reports.charts import Chart, Series
from rlhf.reports.page import Cell, ReportPage, Section, Table, Verdict
from rlhf.reports.record import record_sections
from rlhf.runtime.run_folder import RunFiles

Ways = Mapping[str, Mapping[str, Any]]

_PIPE_COLUMNS = 120
_TEXT = """Means over seeds. Average is the accuracy over all tasks at the end; forgetting is what was lost since the
best earlier moment, mean over all tasks but the last (Chaudhry et al. 2018), below 0 where later tasks helped; backward
transfer is the change since each task was learned (Lopez-Paz and Ranzato 2017). Drift is the perplexity on held-out
pretraining text over that of the start, less 1."""
_MATRIX_TEXT = """Accuracy on each task (columns) after each was learned (rows), mean over seeds."""


def is_task_sequence(summary: Mapping[str, object]) -> bool:
    """Whether a summary is that of `rlhf forgetting`."""
    return "task_sequence" in summary


def forgetting_page(folder: str | Path) -> ReportPage:
    """The page of a comparison that has its summary."""
    files = RunFiles(folder)
    summary = cast(dict[str, Any], files.read_summary())
    ways: Ways = summary["task_sequence"]
    tasks: list[str] = summary["tasks"]
    sections = [
        Section("Ways", " ".join(_TEXT.split()), tables=[_ways_table(ways)], charts=_charts(ways, summary)),
        Section("Matrices", _MATRIX_TEXT, tables=[_matrix(name, way, summary) for name, way in ways.items()]),
        *record_sections(files),
    ]
    return ReportPage(
        title=f"Forgetting in {files.path.resolve().name}",
        subtitle=f"{len(tasks)} tasks in the order {', '.join(tasks)}; {len(ways)} ways, seeds {summary['seeds']}.",
        verdicts=_verdicts(ways),
        sections=sections,
    )


def print_table(summary: Mapping[str, Any], page: Path) -> None:
    """The ways side by side."""
    table = ConsoleTable("way", "average", "forgetting", "over seeds", "backward transfer", "perplexity", "drift", "s")
    for name, way in summary["task_sequence"].items():
        lost = way["forgettings"]
        has_text = way["perplexity_drift"] is not None
        table.add_row(
            name,
            f"{way['average']:.3f}",
            f"{way['forgetting']:+.3f}",
            f"{min(lost):+.3f} to {max(lost):+.3f}",
            f"{way['backward_transfer']:+.3f}",
            f"{way['perplexities'][-1]:.2f}" if has_text else "-",
            f"{100 * way['perplexity_drift']:+.1f} %" if has_text else "-",
            f"{way['seconds']:.1f}",
        )
    # In a pipe, rich assumes 80 columns and would fold the rows.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_COLUMNS)
    console.print(table)
    start = summary["start"]
    text = "" if start["perplexity"] is None else f"; perplexity {start['perplexity']:.2f}"
    scores = ", ".join(f"{task} {score:.3f}" for task, score in start["scores"].items())
    console.print(f"before: {scores}{text}", markup=False, soft_wrap=True)
    for verdict in _verdicts(summary["task_sequence"]):
        console.print(verdict.text, markup=False, soft_wrap=True)
    console.print(f"report: {page}", markup=False, soft_wrap=True)


def _verdicts(ways: Ways) -> list[Verdict]:
    """Which way knows most at the end, and which lost least."""
    best = max(ways, key=lambda name: ways[name]["average"])
    least = min(ways, key=lambda name: ways[name]["forgetting"])
    text = (
        f"Most is known at the end by {best} (average {ways[best]['average']:.3f}); least is forgotten by {least} "
        f"({ways[least]['forgetting']:+.3f})."
    )
    return [Verdict(text)]


def _ways_table(ways: Ways) -> Table:
    columns = (
        "way",
        "average",
        "forgetting",
        "least",
        "most",
        "backward transfer",
        "last perplexity",
        "drift",
        "seconds",
    )
    rows: list[list[Cell]] = [
        [
            name,
            way["average"],
            way["forgetting"],
            min(way["forgettings"]),
            max(way["forgettings"]),
            way["backward_transfer"],
            way["perplexities"][-1] if way["perplexities"] else None,
            way["perplexity_drift"],
            way["seconds"],
        ]
        for name, way in ways.items()
    ]
    return Table(columns, rows, note="Least and most are of the seeds' forgetting; seconds are of training.")


def _matrix(name: str, way: Mapping[str, Any], summary: Mapping[str, Any]) -> Table:
    tasks: list[str] = summary["tasks"]
    start = summary["start"]
    text: list[float | None] = [start["perplexity"], *way["perplexities"]] if way["perplexities"] else []
    scores = [[start["scores"][task] for task in tasks], *way["matrix"]]
    rows: list[list[Cell]] = [
        [after, *row, *text[place : place + 1]]
        for place, (after, row) in enumerate(zip(["start", *tasks], scores, strict=True))
    ]
    return Table(("after", *tasks, *(["perplexity"] if text else [])), rows, title=name)


def _charts(ways: Ways, summary: Mapping[str, Any]) -> list[Chart]:
    first = summary["tasks"][0]
    moments = ["start", *summary["tasks"]]
    places = list(range(len(moments)))
    of_first = [
        Series(name, places, [summary["start"]["scores"][first], *(row[0] for row in way["matrix"])], markers=True)
        for name, way in ways.items()
    ]
    words = "How accuracy on the task that was learned first moves while the others are learned."
    charts = [Chart(f"Accuracy on {first}", "after", "accuracy", of_first, categories=moments, description=words)]
    if summary["start"]["perplexity"] is not None:
        text = [
            Series(name, places, [summary["start"]["perplexity"], *way["perplexities"]], markers=True)
            for name, way in ways.items()
        ]
        words = "On held-out pretraining text."
        charts.append(Chart("Perplexity", "after", "perplexity", text, categories=moments, description=words))
    return charts
