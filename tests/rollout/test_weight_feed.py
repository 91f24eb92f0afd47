"""When the learner packs: as it is asked, or all at once for those who ask later."""

from collections.abc import Sequence

import pytest
import torch

from rollout.weight_buckets import pack_bucket
from rollout.weight_feed import WeightFeed
from rollout.weight_sync import UpdateHeader, WeightUpdate, unpack
from tests.rollout.fakes import InProcessHandle


class Learner:
    """Has three buckets of 16 bytes, and trains when the test says so."""

    def __init__(self) -> None:
        self.weight = torch.zeros(6, 2)
        self.packed: list[int] = []
        self._kept: WeightUpdate | None = None

    def pack_update(self, version: int, bucket: int, bucket_bytes: int) -> UpdateHeader:
        assert self._kept is None, "the bucket before was not taken"
        self.packed.append(bucket)
        self._kept = pack_bucket({"w": self.weight}, version, bucket, bucket_bytes=bucket_bytes, settings={})
        return self._kept.header

    def packed_update(self) -> WeightUpdate:
        update, self._kept = self._kept, None
        assert update is not None
        return update


def feed(learner: Learner, *, is_snapshot: bool) -> WeightFeed:
    handle = InProcessHandle("learner", learner)
    return WeightFeed(handle, 4, bucket_bytes=16, timeout_seconds=1.0, is_snapshot=is_snapshot)


def values(source: WeightFeed) -> Sequence[float]:
    updates = [bucket.update.result(0) for bucket in source.buckets()]
    return torch.cat([unpack(update)["w"] for update in updates])[:, 0].tolist()


@pytest.mark.parametrize("is_snapshot", [True, False])
def test_every_bucket_comes_with_the_header_of_what_it_holds(*, is_snapshot: bool) -> None:
    source = feed(Learner(), is_snapshot=is_snapshot)
    assert source.version == 4
    for _ in range(2):
        buckets = list(source.buckets())
        assert [bucket.header for bucket in buckets] == [bucket.update.result(0).header for bucket in buckets]
        assert [(b.header.bucket, b.header.buckets, b.header.size_bytes) for b in buckets] == [
            (0, 3, 16), (1, 3, 16), (2, 3, 16),
        ]  # fmt: skip


def test_a_bucket_is_packed_when_it_is_asked_for() -> None:
    learner = Learner()
    source = feed(learner, is_snapshot=False)
    assert learner.packed == []
    for count, _ in enumerate(source.buckets(), start=1):
        assert learner.packed == list(range(count))


def test_a_snapshot_stays_what_it_was_when_the_learner_has_moved_on() -> None:
    learner = Learner()
    source = feed(learner, is_snapshot=True)
    assert learner.packed == [0, 1, 2]
    learner.weight += 1
    assert values(source) == values(source) == [0.0] * 6
    assert learner.packed == [0, 1, 2]
    assert values(feed(learner, is_snapshot=False)) == [1.0] * 6
