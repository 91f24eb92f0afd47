"""The sampler's end of a weight sync: buckets in order, into the engine, and read back.

Owns what a sampler accepts, and the check that it then holds what it was sent, bit for bit. The checks between sampler
and learner are the sender's (`rollout.pool`).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from policies.causal import CausalPolicy
from rollout.generation import Generator
from rollout.weight_buckets import largest_mismatch, place_of
from rollout.weight_sync import Ack, StaleWeightsError, WeightUpdate, unpack


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
        self._collected: list[WeightUpdate] = []

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
        self._require_next(update)
        tensors = unpack(update)
        if update.buckets == 1:
            self._generator.load_weights(tensors, version=update.version)
            self._loading = None
        else:
            self._load_bucket(update, tensors)
        mismatch, difference = self._read_back(update, tensors)
        version = update.version if self._loading is not None else self._generator.version
        return Ack(version, update.checksum, mismatch, difference)

    def _require_next(self, update: WeightUpdate) -> None:
        if update.version < self._generator.version:
            raise StaleWeightsError(
                f"weight update {update.version} is older than the worker's version {self._generator.version}; send "
                "the newest"
            )
        is_repeated = self._loading is None and update.version == self._generator.version
        is_next = self._loading == update.version and self._next_bucket == update.bucket
        if update.bucket and not is_repeated and not is_next:
            wanted = self._next_bucket if self._loading == update.version else 0
            raise StaleWeightsError(
                f"weight update {update.version}: bucket {update.bucket} of {update.buckets} came where bucket "
                f"{wanted} was due; a part of the weights was not delivered"
            )

    def _load_bucket(self, update: WeightUpdate, tensors: Mapping[str, Tensor]) -> None:
        if self._policy is None:
            self._collect(update)
        else:
            _write(place_of(self._policy.weights(), update), tensors)
        is_last = update.bucket == update.buckets - 1
        self._loading, self._next_bucket = (None, 0) if is_last else (update.version, update.bucket + 1)
        if is_last and self._policy is not None:
            self._generator.adopt_version(update.version)

    def _collect(self, update: WeightUpdate) -> None:
        self._collected = [*(self._collected if update.bucket else []), update]
        if update.bucket == update.buckets - 1:
            self._generator.load_weights(_joined(self._collected), version=update.version)
            self._collected = []

    def _read_back(self, update: WeightUpdate, tensors: Mapping[str, Tensor]) -> tuple[str | None, float]:
        if self._policy is None:
            return None, 0.0
        own = self._policy.settings()
        for name, value in update.settings.items():
            if own.get(name) != value:
                return name, abs(value - own.get(name, math.inf))
        return largest_mismatch(tensors, place_of(self._policy.weights(), update))


@torch.no_grad()
def _write(places: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    for name, place in places.items():
        place.copy_(tensors[name])


def _joined(updates: list[WeightUpdate]) -> dict[str, Tensor]:
    """The tensors of all buckets; those that were cut are put together again."""
    parts: dict[str, list[Tensor]] = {}
    for update in updates:
        for name, tensor in unpack(update).items():
            parts.setdefault(name, []).append(tensor)
    return {name: pieces[0] if len(pieces) == 1 else torch.cat(pieces) for name, pieces in parts.items()}
