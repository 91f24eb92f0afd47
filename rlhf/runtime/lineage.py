"""What a run was made from and what it made: data -> reward model -> policy, each known by the checksums of its files.

Owns which settings name an input, and names that are the same for whoever wrote a folder and whoever reads it later.
No file leaves this machine: a name and its checksums are all there is to an item.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_DATA_KEYS = ("train", "eval", "pretrain", "pretrain_eval", "normalize")
_SLICE = re.compile(r"\[[-%\d]*:[-%\d]*\]$")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class LineageItem:
    """A data set or a model.

    Attributes:
        kind: What it is.
        name: The last two parts of its path or hub name; the folders above may be private.
        checksums: SHA-256 by file name; of what is not a local file, its name and an empty checksum.
    """

    kind: Literal["dataset", "model"]
    name: str
    checksums: Mapping[str, str]


def inputs_of(config: Mapping[str, Any]) -> list[LineageItem]:
    """What a resolved configuration reads: its data, the model it starts from, its reward models; each once."""
    found = [item_of("dataset", _SLICE.sub("", source)) for source in _data_sources(config)]
    found += [item_of("model", path) for path in _model_paths(config)]
    return list({(item.kind, item.name): item for item in found}.values())


def output_of(run_folder: Path) -> LineageItem | None:
    """The model that a finished run has left in its folder; None where it trains none."""
    path = run_folder / "model"
    return item_of("model", str(path)) if path.is_dir() else None


def _data_sources(config: Mapping[str, Any]) -> Iterator[str]:
    data = config.get("data")
    if isinstance(data, Mapping):
        yield from (data[key] for key in _DATA_KEYS if isinstance(data.get(key), str))


def _model_paths(config: Mapping[str, Any]) -> Iterator[str]:
    rewards = config.get("reward")
    sources = [config.get("model"), *(rewards if isinstance(rewards, Sequence) else ())]
    for source in sources:
        if isinstance(source, Mapping) and isinstance(source.get("path"), str):
            yield source["path"]


def item_of(kind: Literal["dataset", "model"], source: str) -> LineageItem:
    """What lies at a path, with the checksums of its files; of what is not local, the name alone."""
    path = Path(source)
    is_local = path.exists()
    parts = (path.resolve() if is_local else path).parts[-2:]
    name = _UNSAFE.sub("-", "-".join(parts)).strip("-") or kind
    return LineageItem(kind, name, _checksums(path) if is_local else {source: ""})


def _checksums(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    root = path if path.is_dir() else path.parent
    return {file.relative_to(root).as_posix(): _sha256(file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
