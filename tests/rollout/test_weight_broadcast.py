"""Weights for all at once, and what becomes of an update when a worker is lost or cannot reach the others."""

from typing import cast

import pytest
import torch
from torch import Tensor

from policies.causal import CausalPolicy
from rollout.flat_bucket import Manifest, flatten_bucket
from rollout.pool import RolloutPool
from rollout.weight_broadcast import BroadcastError, WeightBroadcast
from rollout.weight_buckets import pack_bucket
from rollout.weight_feed import WeightFeed
from rollout.weight_receiver import WeightReceiver
from rollout.weight_sync import Ack, ChecksumError, UpdateHeader, WeightUpdate
from tests.rollout.fakes import InProcessHandle, MortalHandle, ScriptedGenerator


class Air:
    """What the processes of one group share: who is in it, and what the learner has sent."""

    def __init__(self) -> None:
        self.address = 0
        self.buffer: Tensor | None = None
        self.ranks: list[tuple[int, int]] = []


class Learner:
    """Three buckets of 16 bytes."""

    def __init__(self, air: Air) -> None:
        self._air = air
        self.weights = {"a": torch.arange(8.0).reshape(4, 2), "b": torch.tensor([1.0, 2.0, 3.0])}
        self.group: str | None = None
        self.packed = 0

    def open_broadcast(self, timeout_seconds: float) -> str:
        assert timeout_seconds == 2.0
        self._air.address += 1
        return str(self._air.address)

    def join_broadcast(self, address: str, rank: int, count: int, timeout_seconds: float) -> None:
        del timeout_seconds
        self.group = address
        self._air.ranks = [(rank, count)]

    def flatten_update(self, version: int, bucket: int, bucket_bytes: int) -> Manifest:
        manifest, self._flat = flatten_bucket(self.weights, version, bucket, bucket_bytes=bucket_bytes, settings={})
        return manifest

    def broadcast_update(self) -> None:
        self._air.buffer = self._flat

    def pack_update(self, version: int, bucket: int, bucket_bytes: int) -> UpdateHeader:
        self.packed += 1
        self._update = pack_bucket(self.weights, version, bucket, bucket_bytes=bucket_bytes, settings={})
        return self._update.header

    def packed_update(self) -> WeightUpdate:
        return self._update


class Worker:
    """Holds weights, in a group or not."""

    def __init__(self, air: Air) -> None:
        self._air = air
        self.tensors = {"a": torch.zeros(4, 2), "b": torch.zeros(3)}
        self.group: str | None = None
        self._receiver = WeightReceiver(ScriptedGenerator(), cast(CausalPolicy, self))

    def weights(self) -> dict[str, Tensor]:
        return self.tensors

    def settings(self) -> dict[str, float]:
        return {}

    def join_broadcast(self, address: str, rank: int, count: int, timeout_seconds: float) -> None:
        del timeout_seconds
        self.group = address
        self._air.ranks.append((rank, count))

    def receive_broadcast(self, manifest: Manifest) -> Ack:
        if self.group != str(self._air.address):
            raise BroadcastError("this process is in no group")
        assert self._air.buffer is not None
        return self._receiver.receive_flat(manifest, self._air.buffer.clone())

    def apply_update(self, update: WeightUpdate) -> Ack:
        return self._receiver.receive(update)

    def adopt_version(self, version: int) -> None:
        """It has that version already."""


class Deaf(Worker):
    """Hears only noise."""

    def receive_broadcast(self, manifest: Manifest) -> Ack:
        assert self._air.buffer is not None
        return self._receiver.receive_flat(manifest, self._air.buffer ^ 1)


class Run:
    """A learner, two workers, and both ways between them."""

    def __init__(
        self, *, dies_at: tuple[int, ...] = (), method: str = "receive_broadcast", second: type[Worker] = Worker
    ) -> None:
        self.air = Air()
        self.learner = Learner(self.air)
        self.handle = InProcessHandle("learner", self.learner)
        self.workers = [
            MortalHandle("w0", lambda: Worker(self.air)),
            MortalHandle("w1", lambda: second(self.air), dies_at=dies_at, method=method),
        ]
        self.pool = RolloutPool(self.workers, timeout_seconds=5.0, max_worker_restarts=1)
        self.broadcast = WeightBroadcast(self.handle, bucket_bytes=16, timeout_seconds=2.0)

    def update(self, version: int) -> int:
        for tensor in self.learner.weights.values():
            tensor += 1
        source = WeightFeed(self.handle, version, bucket_bytes=16, timeout_seconds=1.0, is_snapshot=False)
        return self.pool.update_weights(source, self.broadcast)

    def all_hold_the_learners_weights(self) -> bool:
        held = [worker.worker.tensors for worker in self.workers]
        return all(torch.equal(own[name], tensor) for own in held for name, tensor in self.learner.weights.items())


def test_the_group_meets_once_and_every_update_goes_through_it() -> None:
    run = Run()
    for version in (1, 2):
        assert run.update(version) == (4 * 2 + 3) * 4
        assert run.all_hold_the_learners_weights()
    assert run.air.address == 1
    assert run.air.ranks == [(0, 3), (1, 3), (2, 3)]
    assert run.learner.packed == 0
    assert [worker.count("receive_broadcast") for worker in run.workers] == [6, 6]


@pytest.mark.parametrize("bucket", [0, 1, 2])
def test_a_worker_that_dies_in_a_broadcast_is_replaced_and_all_take_the_object_store(
    bucket: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(dies_at=(bucket,))
    assert run.update(1) == 44
    assert run.all_hold_the_learners_weights()
    assert "broadcast of weights: rollout worker w1: actor w1 died; the weights of version 1 go through" in caplog.text
    assert run.learner.packed == 6  # for the new worker, and for both
    # The next one finds a new group, with the new worker in it.
    assert run.update(2) == 44
    assert run.all_hold_the_learners_weights()
    assert (run.air.address, run.learner.packed) == (2, 6)


def test_a_worker_that_dies_when_the_group_meets_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(dies_at=(0,), method="join_broadcast")
    run.update(1)
    assert run.all_hold_the_learners_weights()
    assert "rollout worker w1: actor w1 died" in caplog.text
    run.update(2)
    assert run.all_hold_the_learners_weights()
    assert run.air.address == 2


def test_a_worker_that_was_replaced_between_updates_is_let_in() -> None:
    run = Run(dies_at=(0,), method="adopt_version")
    run.update(1)
    run.pool.adopt_version(1)  # any call at which it dies
    assert run.workers[1].restarts == 1
    run.update(2)
    assert (run.air.address, run.learner.packed) == (2, 3)
    assert run.all_hold_the_learners_weights()


def test_what_arrives_otherwise_than_it_was_sent_ends_the_run_with_the_workers_name() -> None:
    with pytest.raises(ChecksumError, match=r"rollout worker w1: weight update 1 has checksum .* after the broadcast"):
        Run(second=Deaf).update(1)
