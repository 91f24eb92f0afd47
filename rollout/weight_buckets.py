"""Weights in parts of bounded size, so that neither end of a sync holds a second copy of them all.

Owns the cut, by rows where one tensor is larger than a bucket, and the way of a part into place. The wire form of a
part is `weight_sync`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.weight_sync import WeightUpdate, pack


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `start` to `stop` of a tensor's first dimension; a scalar is one row, and `is_whole`."""

    name: str
    start: int
    stop: int
    is_whole: bool


def cut_into_buckets(tensors: Mapping[str, Tensor], bucket_bytes: int) -> list[list[Part]]:
    """Parts that together are all tensors, in buckets of at most `bucket_bytes`; a larger row has one of its own.

    Example: a (4, 2) and b (3,) in float32, 16 bytes a bucket, are a[0:2] | a[2:4] | b[0:3].
    """
    buckets: list[list[Part]] = [[]]
    room = bucket_bytes
    for name, tensor in tensors.items():
        rows = len(tensor) if tensor.ndim else 1
        row_bytes = max(1, tensor.nbytes // max(1, rows))
        start, stop = 0, -1
        while stop < rows:
            if buckets[-1] and room < row_bytes:
                buckets.append([])
                room = bucket_bytes
            stop = min(rows, start + max(1, room // row_bytes))
            buckets[-1].append(Part(name, start, stop, is_whole=stop - start == rows))
            room -= (stop - start) * row_bytes
            start = stop
    return buckets


def pack_bucket(
    tensors: Mapping[str, Tensor],
    version: int,
    bucket: int,
    *,
    bucket_bytes: int,
    settings: Mapping[str, float],
    complete: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> WeightUpdate:
    """One bucket of the weights as an update.

    Args:
        tensors: All weights by name.
        version: Number of the policy they are.
        bucket: Which one; the update says how many there are.
        bucket_bytes: Size that no bucket exceeds, up to one row of a tensor.
        settings: Numbers that the sampler must have beside the weights.
        complete: Gathers a tensor of which this process holds a part; asked for those in the bucket only.
    """
    buckets = cut_into_buckets(tensors, bucket_bytes)
    parts = buckets[bucket]
    return pack(
        {part.name: rows_of(complete(tensors[part.name]), part) for part in parts},
        version,
        settings=settings,
        first_rows={part.name: part.start for part in parts if not part.is_whole},
        bucket=bucket,
        buckets=len(buckets),
    )


def rows_of(tensor: Tensor, part: Part) -> Tensor:
    """The rows of a part; shares memory with the tensor."""
    return tensor if part.is_whole else tensor[part.start : part.stop]


def place_of(
    held: Mapping[str, Tensor], sent: Mapping[str, Tensor], first_rows: Mapping[str, int]
) -> dict[str, Tensor]:
    """Views of the held weights that the tensors of an update belong into.

    Args:
        held: All weights by name.
        sent: What the update brings.
        first_rows: Where it begins in a tensor of which it brings some rows (`WeightUpdate.first_rows`).

    Raises:
        ValueError: if a name or a shape is not that of what is held.
    """
    return {name: _place(held, name, tensor.shape, first_rows.get(name)) for name, tensor in sent.items()}


@torch.no_grad()
def largest_mismatch(expected: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> tuple[str | None, float]:
    """The tensor that differs most, and by how much; (None, 0) where all are equal bit for bit.

    Args:
        expected: Tensors by name; they are compared where they are.
        held: Tensors of the same names, shapes and types, on any device.
    """
    differences = {name: _difference(tensor, held[name].to(tensor.device)) for name, tensor in expected.items()}
    differing = {name: difference for name, difference in differences.items() if difference is not None}
    if not differing:
        return None, 0.0
    worst = max(differing, key=lambda name: differing[name])
    return worst, differing[worst]


def _place(held: Mapping[str, Tensor], name: str, shape: Sequence[int], first_row: int | None) -> Tensor:
    tensor = held.get(name)
    if tensor is not None and first_row is not None and tensor.ndim:
        tensor = tensor[first_row : first_row + shape[0]]
    if tensor is None or tensor.shape != torch.Size(shape):
        found = "is not held here" if tensor is None else f"has shape {tuple(tensor.shape)} here"
        raise ValueError(f"weight update: {name} of shape {tuple(shape)} {found}; learner and sampler need one model")
    return tensor


def _difference(expected: Tensor, held: Tensor) -> float | None:
    """Largest |expected - held|, infinite where that is no number; None where the bits are equal."""
    if expected.dtype == held.dtype and torch.equal(_bits(expected), _bits(held)):
        return None
    difference = (expected.double() - held.double()).abs()
    return float(torch.where(difference.isfinite(), difference, torch.inf).max())


def _bits(tensor: Tensor) -> Tensor:
    # NaN equals itself here, and 0 does not equal -0.
    return tensor.contiguous().reshape(-1).view(torch.uint8)
