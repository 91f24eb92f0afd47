"""JSON Lines files that survive a killed process: encoding, torn-line-tolerant reading, atomic replacement.

Owns the text format only; which files a run keeps is `run_folder.py`'s business.

Non-finite floats have no JSON number. They are written as the strings "NaN", "Infinity" and "-Infinity" (the names that
JavaScript and protobuf's JSON mapping use), so every line stays valid JSON and the kind of failure stays readable;
`float()` reads them back.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from policies.disk import DiskError, flush, writing

NON_FINITE_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: object, *, indent: int | None = None) -> str:
    """JSON text of `value`, with non-finite floats as their names.

    Raises:
        TypeError: `value` holds something JSON has no form for, such as a tensor.
    """
    # A lone surrogate in a text has no UTF-8 form; the writers' "backslashreplace" makes it JSON's own \uXXXX escape.
    return json.dumps(_name_non_finite(value), ensure_ascii=False, allow_nan=False, indent=indent)


def decode_number(value: object) -> object:
    """The float that a non-finite name stands for; any other value unchanged."""
    return NON_FINITE_NAMES.get(value, value) if isinstance(value, str) else value


def append_line(path: Path, text: str) -> None:
    """Adds `text` and a line end to the file, handed to the operating system before this returns.

    Closing the file moves the bytes into the kernel, where they outlive this process even when it dies by SIGKILL. They
    are not forced onto the disk: that would cost a disk write a step, to guard against a power cut alone.

    Raises:
        DiskError: the disk is full; what fitted of the line has no line end, and readers leave it out.
    """
    with writing(path), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text + "\n")


def read_objects(path: Path) -> list[dict[str, object]]:
    """The objects of a JSON Lines file, oldest first; empty when there is no file.

    A last line without its line end was cut off while being written and is left out.

    Raises:
        ValueError: a complete line is not a JSON object.
    """
    if not path.exists():
        return []
    # Split on "\n" alone: `str.splitlines` would also cut at U+2028 and the like, which JSON strings may contain.
    lines = path.read_bytes().split(b"\n")[:-1]
    return [_parse_object(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def write_objects(path: Path, objects: list[dict[str, object]]) -> None:
    """Replaces the file by one line an object; a reader sees the old file or the new one, never a mixture."""
    write_atomically(path, "".join(encode(row) + "\n" for row in objects))


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file's content; after a crash at any moment the file holds all of the old text or all of the new.

    Raises:
        DiskError: the disk is full, or refuses the file in another way; the old text stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with writing(path):
            _write_and_sync(temporary, text)
            temporary.replace(path)
            flush(path.parent)
    except DiskError:
        # What fitted of it would take the room that others need.
        temporary.unlink(missing_ok=True)
        raise


def _write_and_sync(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        # Without this, a power cut after the rename could leave an empty file under the final name.
        os.fsync(file.fileno())


def _parse_object(path: Path, number: int, line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(_broken_line(path, number)) from error
    if not isinstance(value, dict):
        raise ValueError(_broken_line(path, number))
    return cast(dict[str, object], value)


def _broken_line(path: Path, number: int) -> str:
    return f"{path}: line {number} is not a JSON object; the file is damaged: repair the line, or take another run_dir"


def _name_non_finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _name_non_finite(item) for key, item in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_name_non_finite(item) for item in cast(list[object], value)]
    return value
