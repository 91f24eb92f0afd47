"""Weights on their way from the learner to the samplers, and the proof that they arrived.

Owns the wire form, its checksum, the acknowledgement and the canary comparison. It does not own transport (whoever
holds the workers) or what the tensors are (adapter or full weights: `policies`).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rollout.types import PerToken

_UNSIGNED_OF_SIZE = {1: np.uint8, 2: np.uint16}
"""Carriers of the types numpy lacks (bfloat16, float8), by bytes per element."""


class ChecksumError(RuntimeError):
    """Weights changed between the learner and a sampler."""


class CanaryMismatchError(RuntimeError):
    """A sampler and the learner disagree about the same tokens: the sampler does not run the learner's weights."""


class StaleWeightsError(RuntimeError):
    """A sampler's weights are not of the version that was asked for."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A snapshot of weights, independent of the tensors it was made of.

    Attributes:
        version: Number of the policy these weights are.
        tensors: Arrays by tensor name; types numpy lacks travel as unsigned integers of the same size.
        dtypes: Torch type of each tensor, such as "bfloat16".
        checksum: BLAKE2b over version, names, types, shapes and bytes.
    """

    version: int
    tensors: Mapping[str, NDArray[Any]]
    dtypes: Mapping[str, str]
    checksum: str

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(array.nbytes for array in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Ack:
    """A worker's answer to an update: the version it now samples with, and the checksum of what it loaded."""

    version: int
    checksum: str


def pack(tensors: Mapping[str, Tensor], version: int) -> WeightUpdate:
    """Copies tensors from any device into an update.

    Args:
        tensors: Weights by name.
        version: Number of the policy they are.
    """
    arrays = {name: _to_array(tensor) for name, tensor in tensors.items()}
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    return WeightUpdate(version, arrays, dtypes, _checksum(version, arrays, dtypes))


def unpack(update: WeightUpdate) -> dict[str, Tensor]:
    """The tensors of an update, on the CPU, bit for bit as they were packed.

    Raises:
        ChecksumError: if the content is not what was packed.
    """
    actual = _checksum(update.version, update.tensors, update.dtypes)
    if actual != update.checksum:
        raise ChecksumError(
            f"weight update {update.version} has checksum {actual}, packed was {update.checksum}; send it again"
        )
    return {name: _to_tensor(array, update.dtypes[name]) for name, array in update.tensors.items()}


def max_abs_difference(expected: Sequence[PerToken], actual: Sequence[PerToken]) -> float:
    """Largest |expected - actual| over all tokens of all sequences, nats; infinite where either is not a finite number.

    Raises:
        ValueError: if the two differ in the number of sequences or tokens, or hold none.
    """
    if not expected or [len(array) for array in expected] != [len(array) for array in actual]:
        raise ValueError(
            f"canary: expected tokens per sequence {[len(a) for a in expected]}, got {[len(a) for a in actual]}; "
            "compare the same sequences"
        )
    with np.errstate(invalid="ignore"):  # infinity minus infinity is handled below
        difference = np.abs(np.concatenate(expected) - np.concatenate(actual))
    return float(np.where(np.isfinite(difference), difference, np.inf).max())


def require_canary(worker: str, expected: Sequence[PerToken], actual: Sequence[PerToken], *, tolerance: float) -> float:
    """The difference between learner and sampler in nats, after a check that it is tolerable.

    Args:
        worker: Who answered, for the error.
        expected: The learner's log-probabilities of the canary sequences.
        actual: The worker's.
        tolerance: Largest allowed difference, nats.

    Raises:
        CanaryMismatchError: if it is larger.
    """
    difference = max_abs_difference(expected, actual)
    if difference > tolerance:
        raise CanaryMismatchError(
            f"{worker} differs from the learner by {difference:.3g} nats on the canary sequences, allowed are "
            f"{tolerance:g}; it does not sample from the learner's weights: restart it, and report it if that fails"
        )
    return difference


def _to_array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu().contiguous()
    try:
        # A copy: the learner goes on changing the original.
        return tensor.numpy().copy()
    except TypeError:
        return tensor.view(_torch_carrier(tensor)).numpy().copy()


def _torch_carrier(tensor: Tensor) -> torch.dtype:
    return torch.from_numpy(np.empty(0, _UNSIGNED_OF_SIZE[tensor.element_size()])).dtype


def _to_tensor(array: NDArray[Any], dtype: str) -> Tensor:
    # A copy, because arrays from shared memory are read-only and torch has no read-only tensors.
    return torch.from_numpy(array.copy()).view(getattr(torch, dtype))


def _checksum(version: int, arrays: Mapping[str, NDArray[Any]], dtypes: Mapping[str, str]) -> str:
    digest = hashlib.blake2b(str(version).encode(), digest_size=16)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(repr((name, dtypes[name], array.dtype.str, array.shape)).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
