"""report.html: one self-contained page about a run. No script, no request to anywhere, light and dark, fit for print.

Owns the page's parts and its writing. `charts.py` draws, `report_template.html` has markup and style,
`training` builds the page that every training stage gets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal, TypeGuard

from jinja2 import Environment, StrictUndefined

from rlhf.reports.charts import Chart, legend_of, non_finite_count, render_chart
from rlhf.runtime.json_lines import write_atomically
from rlhf.runtime.metric_registry import format_value
from rlhf.runtime.run_folder import RunFiles

Cell = str | int | float | None

_LONGEST_UNWRAPPED_TEXT = 36


@dataclass(frozen=True, slots=True)
class Verdict:
    """One plain sentence at the top of the page, with a mark that says how to take it."""

    text: str
    status: Literal["good", "warning", "bad", "neutral"] = "neutral"


@dataclass(frozen=True, slots=True)
class Headline:
    """A large number at the top of the page; `detail` is small print such as a unit or an interval."""

    label: str
    value: Cell
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, one for each column; numbers are formatted and aligned right, None is a dash."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a text; `change` marks what another text has not, or what this one has lost."""

    text: str
    change: Literal["same", "added", "removed"] = "same"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model, or one moment of training, answered; `parts` are the text again, with its changes marked."""

    name: str
    text: str
    scores: Mapping[str, Cell] = field(default_factory=dict[str, Cell])
    parts: Sequence[Part] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and answers to it, side by side."""

    prompt: str
    answers: Sequence[Answer]


@dataclass(frozen=True, slots=True)
class Listing:
    """Text to unfold and read as it is, such as a configuration."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """A file beside the page; `path` is relative to the run folder."""

    text: str
    path: str


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page; `text` is plain, its paragraphs parted by an empty line."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    samples: Sequence[Sample] = ()
    listings: Sequence[Listing] = ()
    links: Sequence[Link] = ()


@dataclass(frozen=True, slots=True)
class ReportPage:
    """A whole page: title, what to conclude, the main numbers, then the details.

    `run_folder` leads from the page to the files it links, with a slash at its end; empty where it lies beside them.
    `is_from_files` is False where the stage knew more than its folder keeps, so that nobody can write the page again.
    """

    title: str
    subtitle: str = ""
    verdicts: Sequence[Verdict] = ()
    headlines: Sequence[Headline] = ()
    sections: Sequence[Section] = ()
    run_folder: str = ""
    is_from_files: bool = True


_FROM_STAGE = '<meta name="rlhf-page" content="stage">'
"""Stands in the template."""


def write_report(run_folder_path: str | Path, page: ReportPage) -> Path:
    """Writes the page to report.html of the run folder, in one piece, and returns its path."""
    path = RunFiles(run_folder_path).report_path
    write_atomically(path, render_page(page))
    return path


def can_be_written_again(path: Path) -> bool:
    """Whether a page is not there yet, or holds nothing but what can be read from its run's files."""
    return not path.exists() or _FROM_STAGE not in path.read_text(encoding="utf-8")


def render_page(page: ReportPage) -> str:
    """The page as HTML; every text in it is escaped, so a sampled answer cannot become markup.

    Raises:
        ValueError: a table row is not as long as its header, or a chart's series has unequal lengths.
    """
    for section in page.sections:
        for table in section.tables:
            _require_rectangle(table)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": format_cell, "columns": _laid_out, "svg": render_chart}
    environment.filters |= {"legend": legend_of, "non_finite": non_finite_count, "paragraphs": _paragraphs}
    template = resources.files("rlhf").joinpath("report_template.html").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page)


def is_number(cell: object) -> TypeGuard[int | float]:
    """Whether a cell is aligned and formatted as a number."""
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def format_cell(cell: Cell) -> str:
    """A cell's text: numbers with up to four digits, None as a dash."""
    if cell is None:
        return "\N{EN DASH}"
    return format_value(cell, trim=True) if is_number(cell) else str(cell)


def format_column(cells: Sequence[Cell]) -> list[str]:
    """Texts of a column's cells; its numbers have the same count of decimals, to be compared at a glance."""
    texts = [format_cell(cell) for cell in cells]
    numbers = {index for index, cell in enumerate(cells) if is_number(cell) and math.isfinite(cell)}
    if any("e" in texts[index] for index in numbers):
        return texts
    decimals = max((len(texts[index].partition(".")[2]) for index in numbers), default=0)
    return [f"{cells[index]:,.{decimals}f}" if index in numbers else text for index, text in enumerate(texts)]


def _laid_out(table: Table) -> list[tuple[str, str, list[str]]]:
    """Each column as (header, CSS class, texts): numbers stand right, sentences may wrap."""
    columns = list(zip(*table.rows, strict=True)) or [() for _ in table.columns]
    return [
        (header, _column_class(cells), format_column(cells))
        for header, cells in zip(table.columns, columns, strict=True)
    ]


def _column_class(cells: Sequence[Cell]) -> str:
    if any(map(is_number, cells)):
        return "number"
    return "prose" if any(len(format_cell(cell)) > _LONGEST_UNWRAPPED_TEXT for cell in cells) else "text"


def _paragraphs(text: str) -> list[str]:
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def _require_rectangle(table: Table) -> None:
    for number, row in enumerate(table.rows, start=1):
        if len(row) != len(table.columns):
            counts = f"{len(row)} cells for {len(table.columns)} columns"
            raise ValueError(f"table '{table.title}': row {number} has {counts}; give one cell each")
