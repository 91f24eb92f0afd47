"""What `rlhf tokenizers` tells at its end: a table on the terminal, and report.html. Owns words and layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table as ConsoleTable

from rlhf.reports.page import Cell, Listing, ReportPage, Section, Table, Verdict, format_column
from rlhf.runtime.run_folder import RunFiles

Summary = Mapping[str, Any]

_COLUMNS = {
    "vocabulary": "vocabulary",
    "used": "used",
    "fertility": "tokens a word",
    "bytes_per_token": "bytes a token",
    "unknown_rate": "unknown",
    "round_trip_rate": "round trip",
    "bits_per_byte": "bits a byte",
    "parameters": "parameters",
    "train_tokens": "tokens trained on",
}
_ON_TERMINAL = {
    "vocabulary": "tokens",
    "fertility": "a word",
    "bytes_per_token": "bytes",
    "unknown_rate": "unk",
    "round_trip_rate": "exact",
    "bits_per_byte": "bits/B",
    "parameters": "weights",
}
"""Columns that fit a terminal of 80 characters, by shorter names; the caption spells them out."""
_TEXT = (
    "Measured on held-out text without special tokens; words are what stands between white space. Round trip is the "
    "share of documents that decoding gives back exactly. Bits a byte is the held-out loss of a small model that was "
    "trained on the same pieces of text in the same order with each tokenizer; it compares across vocabularies, nats a "
    "token do not."
)


def console_table(summary: Summary) -> ConsoleTable:
    """One row a tokenizer."""
    caption = "bytes a token; unk: unknown; exact: documents that come back; bits a byte"
    table = ConsoleTable(box=SIMPLE, caption=caption)
    table.add_column("tokenizer", no_wrap=True)
    measured: Mapping[str, Mapping[str, Any]] = summary["tokenizers"]
    shown = [key for key in _ON_TERMINAL if any(key in row for row in measured.values())]
    for key in shown:
        table.add_column(_ON_TERMINAL[key], justify="right", no_wrap=True)
    columns = [format_column([row.get(key) for row in measured.values()]) for key in shown]
    for name, *cells in zip(measured, *columns, strict=True):
        table.add_row(name, *cells)
    return table


def verdicts_on(summary: Summary) -> list[Verdict]:
    """Which tokenizer needs the fewest bits, and which lose text."""
    measured: Mapping[str, Mapping[str, Any]] = summary["tokenizers"]
    verdicts = [
        Verdict(
            f"{name} does not give back {1 - row['round_trip_rate']:.1%} of the documents exactly: what a model "
            "generates with it differs from what it was trained on.",
            "warning",
        )
        for name, row in measured.items()
        if row["round_trip_rate"] < 1
    ]
    tried = {name: row["bits_per_byte"] for name, row in measured.items() if "bits_per_byte" in row}
    if len(tried) > 1:
        best, *rest = sorted(tried, key=tried.__getitem__)
        lead = tried[rest[0]] - tried[best]
        verdicts.append(
            Verdict(
                f"{best} has the lowest loss per byte, {lead:.3f} bits below {rest[0]}; one seed of one small model."
            )
        )
    return verdicts


def is_tokenizer_comparison(summary: Mapping[str, object]) -> bool:
    """Whether a summary is that of `rlhf tokenizers`."""
    return "tokenizers" in summary and "held_out_documents" in summary


def tokenizers_page(folder: Path, summary: Summary) -> ReportPage:
    """The page: the table, and how each tokenizer cuts the same text."""
    measured: Mapping[str, Mapping[str, Any]] = summary["tokenizers"]
    keys = [key for key in _COLUMNS if any(key in row for row in measured.values())]
    rows: list[list[Cell]] = [[name, *(row.get(key) for key in keys)] for name, row in measured.items()]
    examples = [Listing(name, str(row["example"])) for name, row in measured.items()]
    return ReportPage(
        f"Tokenizers of {folder.name}",
        subtitle=f"{summary['held_out_documents']:,} held-out documents of {summary['held_out_bytes']:,} bytes.",
        verdicts=verdicts_on(summary),
        sections=[
            Section("Comparison", _TEXT, tables=[Table(("tokenizer", *(_COLUMNS[key] for key in keys)), rows)]),
            Section("The same text", "The beginning of the first document, with a bar between tokens.",
                    listings=examples),
            Section("Record", listings=[Listing("Configuration", RunFiles(folder).config_path.read_text("utf-8"))]),
        ],
    )  # fmt: skip
