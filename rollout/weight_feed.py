"""The learner's end of a weight sync: its weights under one version, bucket by bucket, for as many workers as ask.

Owns when the learner packs, and how long a bucket lives. A bucket goes from the learner to the workers without a visit
here: only its header does, so that acknowledgements can be checked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from rollout.calls import PendingCall, WorkerHandle
from rollout.weight_sync import UpdateHeader


@dataclass(frozen=True, slots=True)
class Bucket:
    """One bucket of an update.

    Attributes:
        header: What the learner says of it.
        update: The answer that holds it, to be passed on as it is: it is stored once, however many workers take it.
    """

    header: UpdateHeader
    update: PendingCall


class WeightSource(Protocol):
    """Weights of one version."""

    @property
    def version(self) -> int:
        """Number of the policy they are."""
        ...

    def buckets(self) -> Iterator[Bucket]:
        """All of them in order, as often as asked."""
        ...


class WeightFeed:
    """The weights that a learner holds now.

    Args:
        learner: Answers `pack_update(version, bucket, bucket_bytes)`, which keeps one packed bucket and returns its
            header, and `packed_update()`, which hands it out.
        version: Number of the policy that the learner holds now.
        bucket_bytes: Size that no bucket exceeds, up to one row of a tensor.
        timeout_seconds: Longest wait for one bucket.
        is_snapshot: True packs everything now and keeps it, for workers that ask after the learner has moved on: one
            copy of what trains, in the transport's store. False packs a bucket when it is asked for and lets go of it
            with the next; the learner must stand still until the last worker is served.
    """

    def __init__(
        self, learner: WorkerHandle, version: int, *, bucket_bytes: int, timeout_seconds: float, is_snapshot: bool
    ) -> None:
        self.version = version
        self._learner, self._bucket_bytes, self._timeout_seconds = learner, bucket_bytes, timeout_seconds
        self._kept = list(self._pack_all()) if is_snapshot else None

    def buckets(self) -> Iterator[Bucket]:
        """All buckets in order, as often as asked."""
        return self._pack_all() if self._kept is None else iter(self._kept)

    def _pack_all(self) -> Iterator[Bucket]:
        bucket = self._pack(0)
        yield bucket
        for index in range(1, bucket.header.buckets):
            bucket = self._pack(index)
            yield bucket

    def _pack(self, index: int) -> Bucket:
        header = self._learner.call("pack_update", self.version, index, self._bucket_bytes)
        # Sent before the header is waited for, so that nobody packs another bucket between the two.
        update = self._learner.call("packed_update")
        return Bucket(header.result(self._timeout_seconds), update)
