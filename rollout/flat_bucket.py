"""One bucket of weights as one buffer of bytes on the device where they live: what a broadcast carries.

Owns the layout of the buffer, its description, and a checksum that needs no copy to the host. Which rows a bucket
holds is `weight_buckets`' decision; who sends it to whom, `weight_broadcast`'s.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.weight_buckets import Part, cut_into_buckets, rows_of
from rollout.weight_sync import ChecksumError, UpdateHeader

_ALIGNMENT = 16
"""Bytes; a tensor of any type may begin there."""
_CHUNK_WORDS = 2**16
"""Words that are mixed at once: few enough for a processor's cache."""
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a tensor, or some rows of one, lies in a buffer.

    Attributes:
        name: The tensor's.
        shape: Of what is there.
        dtype: Its type.
        first_row: Row of the tensor that it begins with; None where it is the whole tensor.
        offset: Byte that it begins at.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    first_row: int | None
    offset: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a buffer holds; it travels by itself, ahead of the buffer.

    Attributes:
        header: Version, place among the buckets, checksum of everything else and of the buffer, bytes of all tensors.
        pieces: What lies where.
        settings: Numbers beside the weights that decide a log-probability (`CausalPolicy.settings`).
        buffer_bytes: Size of the buffer, a multiple of 8.
    """

    header: UpdateHeader
    pieces: tuple[Piece, ...]
    settings: Mapping[str, float]
    buffer_bytes: int

    @property
    def first_rows(self) -> dict[str, int]:
        """As `WeightUpdate.first_rows`."""
        return {piece.name: piece.first_row for piece in self.pieces if piece.first_row is not None}


def flatten_bucket(
    tensors: Mapping[str, Tensor],
    version: int,
    bucket: int,
    *,
    bucket_bytes: int,
    settings: Mapping[str, float],
    complete: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[Manifest, Tensor]:
    """One bucket of the weights as a buffer on their device, and its description; arguments as `pack_bucket`'s."""
    buckets = cut_into_buckets(tensors, bucket_bytes)
    parts = buckets[bucket]
    contents = [rows_of(complete(tensors[part.name]), part).detach() for part in parts]
    pieces, buffer_bytes = _lay_out(parts, contents)
    buffer = torch.zeros(buffer_bytes, dtype=torch.uint8, device=contents[0].device)
    for piece, content in zip(pieces, contents, strict=True):
        _view(buffer, piece).copy_(content)
    size_bytes = sum(content.nbytes for content in contents)
    header = UpdateHeader(version, bucket, len(buckets), checksum="", size_bytes=size_bytes)
    checksum = _checksum(header, pieces, settings, buffer)
    header = UpdateHeader(version, bucket, len(buckets), checksum, size_bytes)
    return Manifest(header, pieces, dict(settings), buffer_bytes), buffer


def tensors_in(buffer: Tensor, manifest: Manifest) -> dict[str, Tensor]:
    """The tensors of a buffer, bit for bit as they were flattened; they are views of it.

    Raises:
        ChecksumError: if buffer and manifest are not what was flattened.
    """
    header = manifest.header
    actual = _checksum(header, manifest.pieces, manifest.settings, buffer)
    if actual != header.checksum:
        raise ChecksumError(
            f"weight update {header.version} has checksum {actual} after the broadcast, sent was {header.checksum}; "
            "set placement.weight_transport=object_store, and report it"
        )
    return {piece.name: _view(buffer, piece) for piece in manifest.pieces}


def bit_sum(buffer: Tensor) -> int:
    """Sum of mixed 8-byte words, mod 2^64: the same on every device, because integers add up in any order.

    Word w at place i counts as the SplitMix64 finaliser (Steele et al. 2014) of w + i * golden ratio. That is one to
    one in w, so no change of a single word goes unseen, and words that trade places are told apart. It finds accidents;
    it does not stand against somebody who makes collisions on purpose.

    Args:
        buffer: uint8, a multiple of 8 bytes.
    """
    words = buffer.view(torch.int64)
    total = torch.zeros((), dtype=torch.int64, device=buffer.device)
    for start in range(0, len(words), _CHUNK_WORDS):
        chunk = words[start : start + _CHUNK_WORDS]
        places = torch.arange(start, start + len(chunk), device=buffer.device)
        mixed = places.mul_(_GOLDEN).add_(chunk)
        for shift, factor in zip((30, 27), _MIX, strict=True):
            mixed = _fold(mixed, shift).mul_(factor)
        total += _fold(mixed, 31).sum()
    return int(total) % 2**64


def _fold(words: Tensor, shift: int) -> Tensor:
    # torch shifts signs in from the left, which must not be mixed.
    return words.bitwise_xor(words.bitwise_right_shift(shift).bitwise_and_((1 << (64 - shift)) - 1))


def _lay_out(parts: list[Part], contents: list[Tensor]) -> tuple[tuple[Piece, ...], int]:
    pieces: list[Piece] = []
    end = 0
    for part, content in zip(parts, contents, strict=True):
        first_row = None if part.is_whole else part.start
        pieces.append(Piece(part.name, tuple(content.shape), content.dtype, first_row, end))
        end = -(-(end + content.nbytes) // _ALIGNMENT) * _ALIGNMENT
    return tuple(pieces), max(end, _ALIGNMENT)


def _view(buffer: Tensor, piece: Piece) -> Tensor:
    count = torch.Size(piece.shape).numel()
    stop = piece.offset + count * piece.dtype.itemsize
    return buffer[piece.offset : stop].view(piece.dtype).view(piece.shape)


def _checksum(header: UpdateHeader, pieces: tuple[Piece, ...], settings: Mapping[str, float], buffer: Tensor) -> str:
    numbers = (header.version, header.bucket, header.buckets, header.size_bytes, sorted(settings.items()))
    described = repr((numbers, pieces, bit_sum(buffer)))
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()
