"""Checkpoints of a training run: everything that decides the next number, written atomically, without pickle.

    checkpoints/step-00000050/state.safetensors   tensors: weights, optimizer moments
    checkpoints/step-00000050/state.json          plain values: step, streams, controllers; and the checksum of the
    tensors

Owns the format, the atomic write (aside, synced, renamed), the fall-back to the previous checkpoint where the newest is
damaged, and the flattening of optimizers. What belongs into the state is the trainer's business.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.checkpoint import atomic_folder

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"^step-(\d{8})$")


class CheckpointError(RuntimeError):
    """No usable checkpoint where one is needed, or one could not be written."""


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


def save_checkpoint(checkpoints: Path, state: TrainingState, *, keep_last: int) -> Path:
    """Writes the state beside, syncs it, renames it into place, then removes all but the newest `keep_last`.

    Raises:
        CheckpointError: if the disk refuses it; earlier checkpoints stay intact.
    """
    target = checkpoints / f"step-{state.step:08d}"
    try:
        with atomic_folder(target) as aside:
            _write_state(aside, state)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint of step {state.step} could not be written to {checkpoints} ({error.strerror}); "
            "earlier checkpoints are intact"
        ) from error
    for folder in _folders(checkpoints)[keep_last:]:
        shutil.rmtree(folder)
    return target


def load_latest_checkpoint(checkpoints: Path) -> TrainingState | None:
    """The newest intact checkpoint, or None where none was ever written; a damaged one is reported and passed over.

    Raises:
        CheckpointError: if checkpoints exist and none of them is intact.
    """
    folders = _folders(checkpoints)
    for folder in folders:
        try:
            return _read_state(folder)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("checkpoint %s is damaged (%s); trying the one before it", folder, error)
    if folders:
        raise CheckpointError(f"no checkpoint in {checkpoints} is intact; start again in another run_dir")
    return None


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
    tensors_path = folder / "state.safetensors"
    # A shared storage (tied weights) would be refused by safetensors; the copy is also what detaches from live weights.
    save_file(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.tensors.items()}, tensors_path
    )
    document = {"step": state.step, "tensors_sha256": _sha256(tensors_path), "values": state.values}
    (folder / "state.json").write_text(json.dumps(document, indent=1), encoding="utf-8")


def _read_state(folder: Path) -> TrainingState:
    document = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    tensors_path = folder / "state.safetensors"
    if _sha256(tensors_path) != document["tensors_sha256"]:
        raise ValueError("checksum of state.safetensors differs from state.json")
    return TrainingState(document["step"], load_file(tensors_path), document["values"])


def _folders(checkpoints: Path) -> list[Path]:
    """Complete checkpoint folders, newest first."""
    if not checkpoints.is_dir():
        return []
    return sorted((path for path in checkpoints.iterdir() if _FOLDER.match(path.name)), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
