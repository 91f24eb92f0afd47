"""Rows from a data source: the one place that turns the value of `data.*` into a list of plain dicts.

A source is one of

    path/to/rows.jsonl            .json, .jsonl, .parquet or .csv, each also gzipped (.gz)
    owner/name[:[config:]split]   a data set on the Hugging Face hub; the split is `train` where none is given
    quickstart/<set>              an embedded set (see rlhf.quickstart.sets)

followed, where only a part is wanted, by a slice in Python's notation over rows or percent: `[:1000]`, `[-200:]`,
`[80%:]`.

JSON is read by the standard library, not by `datasets`: Arrow fills absent keys with None (a row without `chosen`
would look like one that has it), guesses dates, and reports a broken line without its number. This file does not
know what a stage needs of a row.
"""

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, cast

from datasets import load_dataset
from datasets.exceptions import DatasetsError

from rlhf.quickstart.sets import embedded_rows

Row = dict[str, Any]

EMBEDDED_PREFIX = "quickstart/"
_SLICE = re.compile(r"(?P<location>.*)\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\]")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+)(?=:))?(:(?P<split>[\w.-]+))?")
_FILE_NAME = re.compile(r".*\.(?P<format>jsonl|json|parquet|csv)(\.gz)?", re.IGNORECASE)
_ALLOWED = "a .json, .jsonl, .parquet or .csv file (also .gz), a hub data set `owner/name`, or `quickstart/<set>`"


def load_rows(source: str, *, field: str = "data.train") -> list[Row]:
    """The rows of `source`, in its order.

    Args:
        source: File, hub name or embedded set, with or without a slice (see the module's description).
        field: Configuration key the source stands in, named by errors.

    Raises:
        ValueError: If the source does not exist, cannot be read, or holds no rows.
    """
    match = _SLICE.fullmatch(source)
    location = match["location"] if match else source
    rows = list(_stream(location, field))
    selected = rows[_bound(match["start"], len(rows)) : _bound(match["stop"], len(rows))] if match else rows
    if not selected:
        raise ValueError(
            f"{field}={source}: no rows ({location} holds {len(rows)}); at least one is needed: check file and slice"
        )
    return selected


def stream_rows(source: str, *, field: str = "data.train") -> Iterator[Row]:
    """The rows of `source` one at a time: of JSON Lines, Parquet and CSV files no more than a few are in memory.

    A slice with a negative bound or percentages reads the source twice, to count its rows.

    Args:
        source: As in `load_rows`.
        field: Configuration key the source stands in, named by errors.

    Raises:
        ValueError: As `load_rows`; a broken line is named when it is reached.
    """
    match = _SLICE.fullmatch(source)
    location = match["location"] if match else source
    start, stop = (match["start"], match["stop"]) if match else (None, None)
    is_counted = any(bound is not None and (bound[0] == "-" or bound[-1] == "%") for bound in (start, stop))
    count = sum(1 for _ in _stream(location, field)) if is_counted else sys.maxsize
    first, last, _ = slice(_bound(start, count), _bound(stop, count)).indices(count)
    is_empty = True
    for row in islice(_stream(location, field), first, max(first, last)):
        is_empty = False
        yield row
    if is_empty:
        raise ValueError(f"{field}={source}: no rows; at least one is needed: check file and slice")


def _bound(text: str | None, count: int) -> int | None:
    """A slice bound in rows; percentages round down, so `[:80%]` and `[80%:]` share nothing and leave nothing out."""
    if text is None:
        return None
    return int(text[:-1]) * count // 100 if text.endswith("%") else int(text)


def _stream(location: str, field: str) -> Iterator[Row]:
    """The rows of a source without slice."""
    if location.startswith(EMBEDDED_PREFIX):
        yield from _read_embedded(location, field)
        return
    file_name = _FILE_NAME.fullmatch(location)
    if file_name:
        yield from _stream_file(Path(location), file_name["format"].lower(), field)
        return
    hub_name = _HUB_NAME.fullmatch(location)
    if not hub_name or Path(location).exists():
        raise ValueError(f"{field}={location}: not a data source; allowed are {_ALLOWED}")
    yield from _read_hub(hub_name, field)


def _read_embedded(location: str, field: str) -> list[Row]:
    try:
        return embedded_rows(location.removeprefix(EMBEDDED_PREFIX))
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _stream_file(path: Path, format_name: str, field: str) -> Iterator[Row]:
    if not path.is_file():
        raise ValueError(
            f"{field}={path}: no such file; allowed are {_ALLOWED} "
            "(the example data under ../shared/data is optional and comes separately)"
        )
    reader = _stream_json if format_name in ("json", "jsonl") else _stream_table
    try:
        yield from reader(path, format_name)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{field}={path}: cannot be read as {format_name} ({reason}); repair or replace the file"
        ) from error


def _stream_table(path: Path, format_name: str) -> Iterator[Row]:
    """Parquet or CSV through `datasets`, streamed, so that no second copy lands in its cache folder."""
    # Without this, pandas turns the texts "NA", "null" and "None" into missing values.
    options: dict[str, Any] = {"keep_default_na": False} if format_name == "csv" else {}
    yield from cast(Iterator[Row], load_dataset(
        format_name, data_files=str(path), split="train", streaming=True, **options
    ))  # fmt: skip


def _stream_json(path: Path, format_name: str) -> Iterator[Row]:
    """JSON Lines, or for `.json` also one list of objects, which is read whole."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    # Only "\n" ends a line: JSON strings may hold the other separators that `str.splitlines` cuts at.
    # The mark that some editors put in front of UTF-8 is no part of the text.
    with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
        if format_name == "json":
            text = cast(str, file.read())
            if text.lstrip().startswith("["):
                yield from (_require_object(row, f"row {number}") for number, row in enumerate(json.loads(text)))
                return
            lines = iter(text.split("\n"))
        else:
            lines = cast(Iterator[str], iter(file))
        yield from (_parse_line(line, number) for number, line in enumerate(lines, start=1) if line.strip())


def _parse_line(line: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {number} is not valid JSON: {error.msg} at column {error.colno}; one object a line is allowed, or "
            "in .json one list of objects"
        ) from error
    return _require_object(row, f"line {number}")


def _require_object(row: object, place: str) -> Row:
    if not isinstance(row, dict):
        raise ValueError(f"{place} is a {type(row).__name__}; only objects with named fields are allowed")
    return cast(Row, row)


def _read_hub(match: re.Match[str], field: str) -> list[Row]:
    name, config, split = match["name"], match["config"], match["split"] or "train"
    try:
        return cast(list[Row], list(load_dataset(name, config, split=split)))
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{field}={match[0]}: neither a local file nor a readable hub data set ({reason}); allowed are {_ALLOWED}, "
            "and a hub data set may need `owner/name:config:split`"
        ) from error
