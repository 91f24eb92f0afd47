"""What `rlhf corpus` tells at its end: a table on the terminal, and report.html. Owns words and layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as ConsoleTable

from rlhf.corpus.cleaning import Cleaning
from rlhf.reports.page import Cell, Headline, Listing, ReportPage, Section, Table
from rlhf.runtime.run_folder import RunFiles

_COLUMNS = ("rule", "documents dropped", "documents shortened", "bytes removed", "share of all bytes")


def print_outcome(folder: Path, cleaning: Cleaning, summary: Mapping[str, Any]) -> None:
    """Prints what each rule took, what stays, and where it lies."""
    console = Console(highlight=False)
    table = ConsoleTable(box=SIMPLE, caption="rules that took nothing are left out")
    table.add_column("rule", no_wrap=True)
    for name in ("dropped", "shortened", "bytes removed", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, dropped, shortened, removed, share in _rows(cleaning):
        if removed:
            table.add_row(name, f"{dropped:,}", f"{shortened:,}", f"{removed:,}", f"{share:.1%}")
    console.print(table)
    console.print(
        f"{cleaning.kept_documents:,} of {cleaning.documents:,} documents and {cleaning.bytes_after:,} of "
        f"{cleaning.bytes_before:,} bytes stay: {folder / summary['written_file']}, "
        f"report {RunFiles(folder).report_path}",
        soft_wrap=True,
    )


def corpus_page(folder: Path, cleaning: Cleaning, summary: Mapping[str, Any]) -> ReportPage:
    """The page: what stays, what each rule took, and examples of it."""
    sections = [
        Section("Rules", _ORDER, tables=[Table(_COLUMNS, _rows(cleaning))]),
        *_example_sections(cleaning),
        Section("Record", listings=[Listing("Configuration", RunFiles(folder).config_path.read_text("utf-8"))]),
    ]
    headlines = [
        Headline("documents kept", cleaning.kept_documents, f"of {cleaning.documents:,}"),
        Headline("bytes kept", cleaning.bytes_after, f"of {cleaning.bytes_before:,}"),
        Headline("rows skipped", summary["skipped_rows"]),
    ]
    return ReportPage(
        f"Corpus {folder.name}",
        subtitle=str(summary["written_file"]),
        headlines=headlines,
        sections=sections,
        is_from_files=False,
    )


_ORDER = (
    "In the order in which they apply: what one rule removes, the next one does not see. A rule that takes the last "
    "line of a document drops it."
)


def _rows(cleaning: Cleaning) -> list[tuple[str, int, int, int, float]]:
    return [
        (
            tally.rule,
            tally.documents_dropped,
            tally.documents_shortened,
            tally.bytes_removed,
            tally.bytes_removed / max(cleaning.bytes_before, 1),
        )
        for tally in cleaning.tallies
    ]


def _example_sections(cleaning: Cleaning) -> list[Section]:
    rows: list[list[Cell]] = [
        [tally.rule, example.row, example.text] for tally in cleaning.tallies for example in tally.examples
    ]
    if not rows:
        return []
    text = "The first texts that each rule took, cut short; rows count from 0."
    return [Section("Examples", text, tables=[Table(("rule", "row", "removed"), rows)])]
