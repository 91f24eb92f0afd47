"""What a sampler accepts: whole updates, buckets in order, and only what it then holds bit for bit."""

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from policies.causal import CausalPolicy
from rollout.flat_bucket import flatten_bucket
from rollout.weight_buckets import pack_bucket
from rollout.weight_receiver import WeightReceiver
from rollout.weight_sync import StaleWeightsError, WeightUpdate, pack
from tests.rollout.fakes import ScriptedGenerator


class Policy:
    """Weights and settings with a script."""

    def __init__(self) -> None:
        self.tensors = {"a": torch.zeros(4, 2), "b": torch.zeros(3)}
        self.temperature = 0.7

    def weights(self) -> dict[str, Tensor]:
        return self.tensors

    def settings(self) -> dict[str, float]:
        return {"temperature": self.temperature}


class Engine(ScriptedGenerator):
    """Loads into the policy, as an engine on a backbone does."""

    def __init__(self, policy: Policy, *, scale: float = 1.0) -> None:
        super().__init__()
        self._policy, self._scale = policy, scale

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        super().load_weights(tensors, version=version)
        for name, tensor in tensors.items():
            self._policy.tensors[name].copy_(self._scale * tensor)


SENT = {"a": torch.arange(8.0).reshape(4, 2), "b": torch.tensor([1.0, 2.0, 3.0])}
SETTINGS = {"temperature": 0.7}


def receiver(policy: Policy | None, engine: ScriptedGenerator) -> WeightReceiver:
    return WeightReceiver(engine, cast(CausalPolicy, policy))


def buckets(version: int = 3) -> list[WeightUpdate]:
    """a[0:2] | a[2:4] | b"""
    return [pack_bucket(SENT, version, i, bucket_bytes=16, settings=SETTINGS) for i in range(3)]


def test_a_whole_update_goes_through_the_engine_and_is_read_back() -> None:
    policy = Policy()
    engine = Engine(policy)
    ack = receiver(policy, engine).receive(pack(SENT, 3, settings=SETTINGS))
    assert (ack.version, ack.mismatch, ack.difference) == (3, None, 0.0)
    assert engine.loaded.keys() == SENT.keys()


def test_what_the_engine_loads_otherwise_is_told_with_the_tensor_and_the_size() -> None:
    policy = Policy()
    ack = receiver(policy, Engine(policy, scale=1.5)).receive(pack(SENT, 3))
    assert (ack.mismatch, ack.difference) == ("a", 3.5)


def test_a_setting_that_differs_is_told_by_name_and_size() -> None:
    policy = Policy()
    policy.temperature = 1.0
    ack = receiver(policy, Engine(policy)).receive(pack(SENT, 3, settings=SETTINGS))
    assert (ack.mismatch, ack.difference) == ("temperature", pytest.approx(0.3))


def test_buckets_go_into_place_one_by_one_and_the_last_brings_the_version() -> None:
    policy = Policy()
    engine = Engine(policy)
    worker = receiver(policy, engine)
    for update in buckets():
        assert engine.version == 0
        ack = worker.receive(update)
        assert (ack.version, ack.checksum, ack.mismatch) == (3, update.checksum, None)
    worker.require_whole()
    assert engine.version == 3
    # In place: the engine was never handed all weights together.
    assert engine.loaded == {}
    assert all(torch.equal(policy.tensors[name], tensor) for name, tensor in SENT.items())


def test_an_engine_with_weights_of_its_own_gets_all_buckets_together() -> None:
    engine = ScriptedGenerator()
    worker = receiver(None, engine)
    for update in buckets():
        assert engine.loaded == {}
        worker.receive(update)
    assert engine.version == 3
    assert all(torch.equal(engine.loaded[name], tensor) for name, tensor in SENT.items())


def test_between_buckets_a_worker_says_what_it_waits_for() -> None:
    worker = receiver(None, ScriptedGenerator())
    worker.receive(buckets()[0])
    worker.receive(buckets()[1])
    with pytest.raises(StaleWeightsError, match="holds 2 buckets of policy version 3 and waits for the others"):
        worker.require_whole()


@pytest.mark.parametrize(
    ("came", "message"),
    [
        ([(3, 1)], "bucket 1 of 3 came where bucket 0 was due"),
        ([(3, 0), (3, 2)], "bucket 2 of 3 came where bucket 1 was due"),
        ([(3, 0), (4, 1)], "weight update 4: bucket 1 of 3 came where bucket 0 was due"),
    ],
)
def test_a_bucket_that_was_not_delivered_is_missed_by_the_next(came: list[tuple[int, int]], message: str) -> None:
    worker = receiver(None, ScriptedGenerator())
    *good, (version, bucket) = came
    for v, b in good:
        worker.receive(buckets(v)[b])
    with pytest.raises(StaleWeightsError, match=message):
        worker.receive(buckets(version)[bucket])


def test_an_update_that_breaks_off_can_be_sent_again_from_its_start() -> None:
    policy = Policy()
    engine = Engine(policy)
    worker = receiver(policy, engine)
    worker.receive(buckets()[0])
    for update in [*buckets(), *buckets()]:
        assert worker.receive(update).mismatch is None
    worker.require_whole()
    assert engine.version == 3


def test_any_bucket_of_the_version_it_holds_is_taken_again() -> None:
    # A worker that was replaced between two buckets has them all before its pool goes on with the second.
    policy = Policy()
    worker = receiver(policy, Engine(policy))
    for update in [*buckets(), *buckets()[1:]]:
        assert worker.receive(update).mismatch is None
    worker.require_whole()


def test_an_update_that_is_older_than_the_weights_is_refused() -> None:
    engine = ScriptedGenerator(version=5)
    with pytest.raises(StaleWeightsError, match="weight update 4 is older than the worker's version 5"):
        receiver(None, engine).receive(cast(Any, buckets(4)[0]))


def test_buckets_that_came_as_buffers_are_taken_as_the_others() -> None:
    policy = Policy()
    engine = Engine(policy)
    worker = receiver(policy, engine)
    for index in range(3):
        manifest, buffer = flatten_bucket(SENT, 3, index, bucket_bytes=16, settings=SETTINGS)
        ack = worker.receive_flat(manifest, buffer)
        assert (ack.version, ack.checksum, ack.mismatch) == (3, manifest.header.checksum, None)
    assert engine.version == 3
    assert all(torch.equal(policy.tensors[name], tensor) for name, tensor in SENT.items())
    # Broken off in the middle, the update goes on through the object store, from its start.
    manifest, buffer = flatten_bucket(SENT, 4, 0, bucket_bytes=16, settings=SETTINGS)
    worker.receive_flat(manifest, buffer)
    for update in buckets(4):
        worker.receive(update)
    worker.require_whole()
    assert engine.version == 4
