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
import zlib
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
    rows = _read(location, field)
    selected = rows[_bound(match["start"], len(rows)) : _bound(match["stop"], len(rows))] if match else rows
    if not selected:
        raise ValueError(
            f"{field}={source}: no rows ({location} holds {len(rows)}); at least one is needed: check file and slice"
        )
    return selected


def _bound(text: str | None, count: int) -> int | None:
    """A slice bound in rows; percentages round down, so `[:80%]` and `[80%:]` share nothing and leave nothing out."""
    if text is None:
        return None
    return int(text[:-1]) * count // 100 if text.endswith("%") else int(text)


def _read(location: str, field: str) -> list[Row]:
    if location.startswith(EMBEDDED_PREFIX):
        return _read_embedded(location, field)
    file_name = _FILE_NAME.fullmatch(location)
    if file_name:
        return _read_file(Path(location), file_name["format"].lower(), field)
    hub_name = _HUB_NAME.fullmatch(location)
    if hub_name and not Path(location).exists():
        return _read_hub(hub_name, field)
    raise ValueError(f"{field}={location}: not a data source; allowed are {_ALLOWED}")


def _read_embedded(location: str, field: str) -> list[Row]:
    try:
        return embedded_rows(location.removeprefix(EMBEDDED_PREFIX))
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from error


def _read_file(path: Path, format_name: str, field: str) -> list[Row]:
    if not path.is_file():
        raise ValueError(
            f"{field}={path}: no such file; allowed are {_ALLOWED} "
            "(the example data under ../shared/data is optional and comes separately)"
        )
    reader = _read_json if format_name in ("json", "jsonl") else _read_table
    try:
        return reader(path, format_name)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{field}={path}: cannot be read as {format_name} ({reason}); repair or replace the file"
        ) from error


def _read_table(path: Path, format_name: str) -> list[Row]:
    """Parquet or CSV through `datasets`, streamed, so that no second copy lands in its cache folder."""
    # Without this, pandas turns the texts "NA", "null" and "None" into missing values.
    options: dict[str, Any] = {"keep_default_na": False} if format_name == "csv" else {}
    table = load_dataset(format_name, data_files=str(path), split="train", streaming=True, **options)
    return cast(list[Row], list(table))


def _read_json(path: Path, format_name: str) -> list[Row]:
    """JSON Lines, or for `.json` also one list of objects."""
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        # Only "\n" ends a line: JSON strings may hold the other separators that `str.splitlines` cuts at.
        text = cast(str, file.read())
    if format_name == "json" and text.lstrip().startswith("["):
        return [_require_object(row, f"row {number}") for number, row in enumerate(json.loads(text))]
    return [_parse_line(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _parse_line(line: str, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number} is not valid JSON: {error.msg} at column {error.colno}") from error
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
