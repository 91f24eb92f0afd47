"""The sampler's end of a weight sync: buckets in order, into the engine, and read back.

Owns what a sampler accepts, and the check that it then holds what it was sent, bit for bit. The checks between sampler
and learner are the sender's (`rollout.pool`).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from policies.causal import CausalPolicy
from rollout.flat_bucket import Manifest, tensors_in
from rollout.generation import Generator
from rollout.weight_buckets import largest_mismatch, place_of
from rollout.weight_sync import Ack, StaleWeightsError, UpdateHeader, WeightUpdate, unpack


class WeightReceiver:
    """Takes the updates of one engine.

    Args:
        generator: The engine.
        policy: What the engine samples from, where it lives in this process: read back after every bucket, and written
            to in place by updates of several buckets. None where the engine keeps weights of its own; such an engine
            gets all buckets together.
    """

    def __init__(self, generator: Generator, policy: CausalPolicy | None) -> None:
        self._generator, self._policy = generator, policy
        self._loading: int | None = None
        self._next_bucket = 0
        self._collected: list[dict[str, Tensor]] = []

    def require_whole(self) -> None:
        """Refuses to go on between the buckets of an update.

        Raises:
            StaleWeightsError: if some came, and not all.
        """
        if self._loading is not None:
            raise StaleWeightsError(
                f"rollout worker holds {self._next_bucket} buckets of policy version {self._loading} and waits for the "
                "others; send it that version from its first bucket on"
            )

    def receive(self, update: WeightUpdate) -> Ack:
        """Verifies and loads an update or a bucket of one. Repeating the last one is harmless.

        Raises:
            ChecksumError: if it was damaged; the old weights stay.
            StaleWeightsError: if it is older than what the engine has, or not the bucket that comes next.
            ValueError: if it belongs to another model.
        """
        return self._take(update.header, update.settings, update.first_rows, lambda: unpack(update))

    def receive_flat(self, manifest: Manifest, buffer: Tensor) -> Ack:
        """As `receive`, of a bucket that came as a buffer, which now belongs to this receiver."""
        return self._take(manifest.header, manifest.settings, manifest.first_rows, lambda: tensors_in(buffer, manifest))

    def _take(
        self,
        header: UpdateHeader,
        settings: Mapping[str, float],
        first_rows: Mapping[str, int],
        verified: Callable[[], dict[str, Tensor]],
    ) -> Ack:
        self._require_next(header)
        tensors = verified()
        if header.buckets == 1:
            self._generator.load_weights(tensors, version=header.version)
            self._loading = None
        else:
            self._load_bucket(header, tensors, first_rows)
        mismatch, difference = self._read_back(tensors, settings, first_rows)
        version = header.version if self._loading is not None else self._generator.version
        return Ack(version, header.checksum, mismatch, difference)

    def _require_next(self, header: UpdateHeader) -> None:
        if header.version < self._generator.version:
            raise StaleWeightsError(
                f"weight update {header.version} is older than the worker's version {self._generator.version}; send "
                "the newest"
            )
        is_repeated = self._loading is None and header.version == self._generator.version
        is_next = self._loading == header.version and self._next_bucket == header.bucket
        if header.bucket and not is_repeated and not is_next:
            wanted = self._next_bucket if self._loading == header.version else 0
            raise StaleWeightsError(
                f"weight update {header.version}: bucket {header.bucket} of {header.buckets} came where bucket "
                f"{wanted} was due; a part of the weights was not delivered"
            )

    def _load_bucket(self, header: UpdateHeader, tensors: dict[str, Tensor], first_rows: Mapping[str, int]) -> None:
        is_last = header.bucket == header.buckets - 1
        if self._policy is not None:
            _write(place_of(self._policy.weights(), tensors, first_rows), tensors)
        else:
            self._collected = [*(self._collected if header.bucket else []), tensors]
            if is_last:
                self._generator.load_weights(_joined(self._collected), version=header.version)
                self._collected = []
        self._loading, self._next_bucket = (None, 0) if is_last else (header.version, header.bucket + 1)
        if is_last and self._policy is not None:
            self._generator.adopt_version(header.version)

    def _read_back(
        self, tensors: Mapping[str, Tensor], settings: Mapping[str, float], first_rows: Mapping[str, int]
    ) -> tuple[str | None, float]:
        if self._policy is None:
            return None, 0.0
        own = self._policy.settings()
        for name, value in settings.items():
            if own.get(name) != value:
                return name, abs(value - own.get(name, math.inf))
        return largest_mismatch(tensors, place_of(self._policy.weights(), tensors, first_rows))


@torch.no_grad()
def _write(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, place in places.items():
        place.copy_(tensors[name])


def _joined(buckets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all buckets; those that were cut are put together again."""
    parts: dict[str, list[Tensor]] = {}
    for bucket in buckets:
        for name, tensor in bucket.items():
            parts.setdefault(name, []).append(tensor)
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in parts.items()}
