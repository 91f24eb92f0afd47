"""Model folders and tensor files, written atomically.

Owns how things reach the disk: written aside, flushed, then renamed, so that a crash leaves either the previous
folder or the new one, never half of one. It also owns `rlhf_metadata.json`, the note beside the weights. What goes
into a training state is the caller's business.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.disk import flush, writing

METADATA_FILE = "rlhf_metadata.json"


class AdapterWriter(Protocol):
    """What `save_adapter` needs of `policies.adapters.AdapterSet`."""

    def write(self, name: str, folder: Path) -> dict[str, Any]:
        """Writes the adapter's files into an existing folder and returns metadata about it."""
        ...


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `folder` when the block ends without an exception.

    An exception removes what was written and leaves the previous folder as it was. A process killed inside the block
    leaves the previous folder too, and a `.tmp-` folder beside it that the next write to the same place removes.

    Raises:
        DiskError: the disk is full, or refuses the folder in another way.
    """
    with writing(folder):
        yield from _filled_aside(Path(folder))


def _filled_aside(target: Path) -> Iterator[Path]:
    restore_interrupted(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f"{target.name}.tmp-*"):
        _remove(leftover)
    aside = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    aside.mkdir()
    try:
        yield aside
        _flush_tree(aside)
        _replace(aside, target)
    except BaseException:
        _remove(aside)
        raise


def restore_interrupted(folder: str | Path) -> None:
    """Puts the previous folder back if a process died between the two renames that replace it."""
    target = Path(folder)
    previous = _previous(target)
    if previous.exists():
        if target.exists():
            _remove(previous)
        else:
            previous.rename(target)


def save_model(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    metadata: Mapping[str, Any],
    *,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes an ordinary Hugging Face folder (safetensors and tokenizer) with our metadata beside it.

    Args:
        folder: Where to.
        model: The model.
        tokenizer: Its tokenizer.
        metadata: The note beside them.
        tensors: The model's state by name, where the model itself holds a part of it; None takes the model's own.

    Raises:
        ValueError: if adapters hang on the model; its tensors would have names no other library finds.
    """
    if any(name.endswith(".base_layer") for name, _ in model.named_modules()):
        raise ValueError(
            "the model carries adapters; save `AdapterSet.merged_model(name)`, or the adapter with `save_adapter`"
        )
    with atomic_folder(folder) as aside:
        model.save_pretrained(aside, state_dict=None if tensors is None else dict(tensors))
        tokenizer.save_pretrained(aside)
        _write_metadata(aside, metadata)


def save_adapter(
    folder: str | Path,
    adapters: AdapterWriter,
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    metadata: Mapping[str, Any],
) -> None:
    """Writes one adapter as PEFT does, with the tokenizer and our metadata (base fingerprint included) beside it.

    Raises:
        ValueError: if there is no adapter of that name.
    """
    with atomic_folder(folder) as aside:
        about = adapters.write(name, aside)
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)
        _write_metadata(aside, {**metadata, **about})


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of a model folder; empty for a folder that another library wrote."""
    file = Path(folder) / METADATA_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file atomically. Tensors that share memory are stored once each.

    Raises:
        DiskError: the disk is full, or refuses the file in another way.
    """
    with writing(path):
        _save_aside(Path(path), tensors)


def _save_aside(target: Path, tensors: Mapping[str, Tensor]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        # A copy each, because safetensors refuses tensors that share storage.
        save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, aside)
        flush(aside)
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush(target.parent)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Reads a safetensors file onto the CPU."""
    return load_file(path)


def _write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    (folder / METADATA_FILE).write_text(json.dumps(dict(metadata), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _previous(target: Path) -> Path:
    return target.with_name(f"{target.name}.previous")


def _replace(new: Path, target: Path) -> None:
    """Two renames, because no portable call swaps two folders; `restore_interrupted` covers a death between them."""
    if not target.exists():
        new.rename(target)
    else:
        target.rename(_previous(target))
        try:
            new.rename(target)
        except BaseException:
            _previous(target).rename(target)
            raise
        _remove(_previous(target))
    flush(target.parent)


def _remove(path: Path) -> None:
    shutil.rmtree(path)


def _flush_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)
