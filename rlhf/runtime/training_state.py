"""Checkpoints of a training run: everything that decides the next number, written atomically, without pickle.

    checkpoints/step-00000050/state.safetensors   tensors: weights, optimizer moments
    checkpoints/step-00000050/state.json          plain values: step, streams, controllers
    checkpoints/step-00000050/manifest.json       SHA-256 of both

Owns the format, the atomic write (aside, synced, renamed), the fall-back to the previous checkpoint where the newest is
damaged, and the flattening of optimizers. What belongs into the state is the trainer's business.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.checkpoint import atomic_folder
from policies.disk import DiskError

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"^step-(\d{8})$")
_TENSORS, _VALUES, _MANIFEST = "state.safetensors", "state.json", "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; earlier ones are intact."""


class NoIntactCheckpointError(CheckpointError):
    """There are checkpoints, and all of them are damaged."""

    nothing_to_resume: ClassVar[bool] = True
    """The command line offers --resume after other failures, not after this one."""


@dataclass(frozen=True, slots=True)
class TrainingState:
    """State after `step` steps.

    Attributes:
        step: Steps done.
        tensors: Name -> tensor; names carry a prefix of their owner (`policy.`, `policy_optimizer.`).
        values: JSON-serialisable state: stream positions, controllers, counters.
    """

    step: int
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any] = field(default_factory=dict)

    def tensors_of(self, owner: str) -> dict[str, Tensor]:
        """The tensors saved under `owner.`, without the prefix."""
        prefix = f"{owner}."
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def with_owner(owner: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under `owner.<name>`; the inverse of `TrainingState.tensors_of`."""
    return {f"{owner}.{name}": tensor for name, tensor in tensors.items()}


def save_checkpoint(
    checkpoints: Path, state: TrainingState, *, keep_last: int, also_keep: Collection[int] = ()
) -> Path:
    """Writes the state beside, syncs it, renames it into place, then removes what need not stay.

    Args:
        checkpoints: Folder of the checkpoints.
        state: What to save.
        keep_last: So many stay, the newest ones. Those of later steps go: a run that writes this one has passed over
            them and takes those steps again.
        also_keep: Steps whose checkpoints stay, too.

    Raises:
        CheckpointError: if the disk refuses it; earlier checkpoints stay intact.
    """
    target = checkpoints / _name(state.step)
    try:
        with atomic_folder(target) as aside:
            _write_state(aside, state)
    except (OSError, DiskError) as error:
        raise CheckpointError(f"checkpoint of step {state.step}: {error}; earlier checkpoints are intact") from error
    earlier = [folder for folder in _folders(checkpoints) if folder.name <= target.name]
    kept = {*earlier[:keep_last], *(checkpoints / _name(step) for step in also_keep)}
    for folder in _folders(checkpoints):
        if folder not in kept:
            shutil.rmtree(folder)
    return target


def load_latest_checkpoint(checkpoints: Path, *, not_after: int | None = None) -> TrainingState | None:
    """The newest intact checkpoint, or None where none was ever written; a damaged one is reported and passed over.

    Args:
        checkpoints: Folder of the checkpoints.
        not_after: Latest step that counts; where all are later, the earliest does.

    Raises:
        NoIntactCheckpointError: if checkpoints exist and none of them is intact.
    """
    damaged: dict[Path, str] = {}
    folders = _folders(checkpoints)
    if not_after is not None:
        folders = [folder for folder in folders if folder.name <= _name(not_after)] or folders[-1:]
    for folder in folders:
        try:
            state = _read_state(folder)
        except (OSError, ValueError) as error:
            damaged[folder] = str(error)
            continue
        for passed_over, reason in damaged.items():
            logger.warning("checkpoint %s is damaged (%s); continuing from %s", passed_over, reason, folder)
        return state
    if damaged:
        newest, reason = next(iter(damaged.items()))
        raise NoIntactCheckpointError(
            f"no checkpoint in {checkpoints} is intact ({newest.name}: {reason}); start again in another run_dir"
        )
    return None


def saved_steps(checkpoints: Path) -> frozenset[int]:
    """Steps whose checkpoints are there."""
    return frozenset(int(folder.name.rpartition("-")[2]) for folder in _folders(checkpoints))


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """Moments and step counts of an optimizer as `<parameter name>/<state key>` -> tensor."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in named_parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(float(value))
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer,
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Inverse of `optimizer_tensors`; learning rates are set by the schedule and are no part of it."""
    parameters = dict(named_parameters)
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in tensors.items():
        name, key = path.rsplit("/", 1)
        states.setdefault(name, {})[key] = tensor
    for name, state in states.items():
        parameter = parameters[name]
        # Fused AdamW wants `step` on the parameter's device in float32, like the moments. Copies, because the optimizer
        # writes into them, and the state may be loaded again.
        optimizer.state[parameter] = {key: tensor.to(parameter.device, copy=True) for key, tensor in state.items()}


def _write_state(folder: Path, state: TrainingState) -> None:
    save_file(_with_storage_of_their_own(state.tensors), folder / _TENSORS)
    values = {"step": state.step, "values": state.values}
    (folder / _VALUES).write_text(json.dumps(values, indent=1), encoding="utf-8")
    sums = {name: _sha256(folder / name) for name in (_TENSORS, _VALUES)}
    (folder / _MANIFEST).write_text(json.dumps({"sha256": sums}, indent=1), encoding="utf-8")


def _with_storage_of_their_own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU; copies only where memory is shared, which safetensors refuses."""
    stored: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage()
        if storage.nbytes() != flat.nbytes or storage.data_ptr() in taken:
            flat = flat.clone()
        taken.add(storage.data_ptr())
        stored[name] = flat
    return stored


def _read_state(folder: Path) -> TrainingState:
    sums = _read_sums(folder)
    for name in (_TENSORS, _VALUES):
        if not (folder / name).is_file():
            raise ValueError(f"{name} is missing")
        if _sha256(folder / name) != sums.get(name):
            raise ValueError(f"the checksum of {name} is not that in {_MANIFEST}")
    values = json.loads((folder / _VALUES).read_text(encoding="utf-8"))
    return TrainingState(values["step"], load_file(folder / _TENSORS), values["values"])


def _read_sums(folder: Path) -> dict[str, str]:
    """File name -> SHA-256.

    Raises:
        ValueError: the manifest is missing or is none.
    """
    try:
        sums = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["sha256"]
    except FileNotFoundError as error:
        raise ValueError(f"{_MANIFEST} is missing") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{_MANIFEST} cannot be read") from error
    return sums if isinstance(sums, dict) else {}


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _folders(checkpoints: Path) -> list[Path]:
    """Complete checkpoint folders, newest first."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if _FOLDER.match(path.name)), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
