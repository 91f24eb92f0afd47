"""Weights on their way from the learner to the samplers, and the proof that they arrived.

Owns the wire form, its checksum, the acknowledgement and the canary comparison. It does not own the way (the learner's
end is `weight_feed`, the sampler's `weight_receiver`) or what the tensors are (adapter or full weights: `policies`).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rollout.types import PerToken

_UNSIGNED_OF_SIZE = {1: np.uint8, 2: np.uint16}
"""Carriers of the types numpy lacks (bfloat16, float8), by bytes per element."""


class WeightSyncError(RuntimeError):
    """A sampler does not sample from the learner's weights."""


class ChecksumError(WeightSyncError):
    """Weights changed between the learner and a sampler."""


class WeightMismatchError(WeightSyncError):
    """A sampler received the right weights and holds others."""


class CanaryMismatchError(WeightSyncError):
    """A sampler and the learner disagree about the same tokens: the sampler does not run the learner's weights."""


class StaleWeightsError(WeightSyncError):
    """A sampler's weights are not of the version that was asked for."""


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """What the sender knows of one bucket of an update: enough to check the acknowledgements of it.

    Attributes:
        version: Number of the policy these weights are.
        bucket: Index of this part of the weights.
        buckets: How many parts the weights have.
        checksum: BLAKE2b over everything else in the update.
        size_bytes: Bytes of all tensors.
    """

    version: int
    bucket: int
    buckets: int
    checksum: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A snapshot of weights, or of one bucket of them, independent of the tensors it was made of.

    Attributes:
        version: Number of the policy these weights are.
        tensors: Arrays by tensor name; types numpy lacks travel as unsigned integers of the same size.
        dtypes: Torch type of each tensor, such as "bfloat16".
        checksum: BLAKE2b over everything else.
        settings: Numbers beside the weights that decide a log-probability (`CausalPolicy.settings`).
        first_rows: Where a tensor that two buckets share begins in this one, a row of its first dimension; the others
            are whole.
        bucket: Index of this part of the weights.
        buckets: How many parts the weights have.
    """

    version: int
    tensors: Mapping[str, NDArray[Any]]
    dtypes: Mapping[str, str]
    checksum: str
    settings: Mapping[str, float] = field(default_factory=dict[str, float])
    first_rows: Mapping[str, int] = field(default_factory=dict[str, int])
    bucket: int = 0
    buckets: int = 1

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(array.nbytes for array in self.tensors.values())

    @property
    def header(self) -> UpdateHeader:
        """The update without its tensors."""
        return UpdateHeader(self.version, self.bucket, self.buckets, self.checksum, self.size_bytes)


@dataclass(frozen=True, slots=True)
class Ack:
    """A worker's answer to an update, after it has read back what it holds now.

    Attributes:
        version: Number of the policy that it samples from, or that the bucket is a part of.
        checksum: Of what it received.
        mismatch: The tensor or setting that differs most from what it received; None where all are equal bit for bit.
        difference: By how much, the largest over the tensor.
    """

    version: int
    checksum: str
    mismatch: str | None = None
    difference: float = 0.0


def pack(
    tensors: Mapping[str, Tensor],
    version: int,
    *,
    settings: Mapping[str, float] | None = None,
    first_rows: Mapping[str, int] | None = None,
    bucket: int = 0,
    buckets: int = 1,
) -> WeightUpdate:
    """Copies tensors from any device into an update.

    Args:
        tensors: Weights by name.
        version: Number of the policy they are.
        settings: Numbers that the sampler must have beside them.
        first_rows: First row of each tensor that is a part of one.
        bucket: Index of this part of the weights.
        buckets: How many parts the weights have.
    """
    update = WeightUpdate(
        version,
        tensors={name: _to_array(tensor) for name, tensor in tensors.items()},
        dtypes={name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
        checksum="",
        settings=dict(settings or {}),
        first_rows=dict(first_rows or {}),
        bucket=bucket,
        buckets=buckets,
    )
    return replace(update, checksum=_checksum(update))


def unpack(update: WeightUpdate) -> dict[str, Tensor]:
    """The tensors of an update, on the CPU, bit for bit as they were packed.

    Raises:
        ChecksumError: if the content is not what was packed.
    """
    actual = _checksum(update)
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


def require_ack(worker: str, ack: Ack, sent: UpdateHeader) -> None:
    """Checks what a worker says it holds after a bucket.

    Args:
        worker: Who answered, for the error.
        ack: The answer.
        sent: What the learner says of the bucket.

    Raises:
        ChecksumError: if it received something else.
        WeightMismatchError: if it holds something else than it received.
        StaleWeightsError: if it is at another version.
    """
    if ack.checksum != sent.checksum:
        raise ChecksumError(f"{worker} received weights with checksum {ack.checksum}, sent was {sent.checksum}")
    if ack.mismatch is not None:
        raise WeightMismatchError(
            f"{worker} holds other weights than it was sent as version {sent.version}: {ack.mismatch} differs by "
            f"{ack.difference:.3g}; they were not loaded as they came: report it"
        )
    if ack.version != sent.version:
        raise StaleWeightsError(f"{worker} is at version {ack.version} after update {sent.version}")


@contextmanager
def told_by(worker: str) -> Iterator[None]:
    """What a worker says about its weights is told with its name.

    Args:
        worker: Whose answer is taken inside.
    """
    try:
        yield
    except WeightSyncError as error:
        raise type(error)(f"{worker}: {error}") from error


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


def _checksum(update: WeightUpdate) -> str:
    numbers = (update.version, update.bucket, update.buckets, sorted(update.settings.items()))
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=16)
    for name in sorted(update.tensors):
        array = np.ascontiguousarray(update.tensors[name])
        place = (name, update.first_rows.get(name), update.dtypes[name], array.dtype.str, array.shape)
        digest.update(repr(place).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
