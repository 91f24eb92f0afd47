"""Roles in Ray actors: calls, errors that keep their type and name the actor, timeouts, and what is refused at once."""

import os
import queue
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from rlhf import exit_status
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.cluster import ActorRequest, ray_cluster, ray_workers
from rlhf.runtime.placement import Resources
from rlhf.runtime.workers import WorkerError, WorkerTimeoutError, fan_out
from rollout.calls import WorkerHandle
from rollout.weight_sync import ChecksumError, WeightUpdate, pack, unpack

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("ray_cluster")]

OFFERED = Resources(2.0, 0.0)
PATIENCE = 120.0


class Role:
    """What an actor hosts here."""

    def __init__(self, label: str, trace: str | None = None) -> None:
        if trace is not None:
            Path(trace).write_text("built", encoding="utf-8")
        if label == "impossible":
            raise ValueError("role.label='impossible'; allowed is any other: rename it")
        self.label = label

    def double(self, values: np.ndarray, *, plus: float = 0.0) -> tuple[str, np.ndarray, bool]:
        return self.label, 2 * values + plus, values.flags.writeable

    def weights(self, update: WeightUpdate) -> dict[str, torch.Tensor]:
        return unpack(update)

    def numbers(self, values: list[int]) -> list[int]:
        return [10 * value for value in values]

    def fail(self, error: Exception) -> None:
        raise error

    def sleep(self) -> None:
        time.sleep(PATIENCE)

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def request(name: str, label: str = "fine", *, cpus: float = 0.1, **keywords: Any) -> ActorRequest:
    return ActorRequest(name, Resources(cpus, 0.0), Role, {"label": label, **keywords})


@pytest.fixture(scope="module")
def workers(ray_cluster: None) -> Iterator[dict[str, WorkerHandle]]:
    del ray_cluster
    names = ("calm-0", "calm-1", "mortal", "slow")
    with ray_workers([request(name, label=name) for name in names], OFFERED, timeout_seconds=PATIENCE) as handles:
        yield {handle.name: handle for handle in handles}


def test_a_call_reaches_its_own_actor_with_arguments_keywords_and_arrays(workers: dict[str, WorkerHandle]) -> None:
    for name in ("calm-0", "calm-1"):
        label, values, writeable = workers[name].call("double", np.arange(3.0), plus=1.0).result(PATIENCE)
        assert (label, values.tolist()) == (name, [1.0, 3.0, 5.0])
        # Arrays arrive as views of shared memory: a role that writes into its input would fail here only.
        assert not writeable


def test_weights_travel_bit_for_bit_and_stay_verifiable(workers: dict[str, WorkerHandle]) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(5).to(torch.bfloat16)}
    received = workers["calm-0"].call("weights", pack(tensors, 4)).result(PATIENCE)
    assert all(torch.equal(received[name], tensors[name]) for name in tensors)
    update = pack(tensors, 4)
    damaged = replace(update, tensors={**update.tensors, "a": update.tensors["a"] + np.float32(1e-6)})
    with pytest.raises(ChecksumError, match="weight update 4 has checksum") as caught:
        workers["calm-0"].call("weights", damaged).result(PATIENCE)
    assert exit_status.lines_for(caught.value)[0].endswith("raised in actor calm-0")


def test_work_is_spread_over_actors_and_gathered_in_order(workers: dict[str, WorkerHandle]) -> None:
    shares = fan_out([workers["calm-0"], workers["calm-1"]], "numbers", [1, 2, 3, 4, 5])
    assert [(start, answer.result(PATIENCE)) for start, answer in shares] == [(0, [10, 20, 30]), (3, [40, 50])]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("data.train: row 3 is bad; repair it"), exit_status.USER_ERROR),
        (NonFiniteLossError("policy loss", float("nan"), 7), exit_status.OUTSIDE_FAILURE),
        (KeyError("a defect"), None),
    ],
)
def test_what_a_role_raises_is_raised_here_and_names_the_actor(
    workers: dict[str, WorkerHandle], error: Exception, status: int | None
) -> None:
    with pytest.raises(type(error)) as caught:
        workers["calm-1"].call("fail", error).result(PATIENCE)
    assert type(caught.value) is type(error)
    assert str(caught.value) == str(error)
    assert caught.value.__notes__ == ["raised in actor calm-1"]
    assert exit_status.status_of(caught.value) == status
    if status is not None:
        assert exit_status.lines_for(caught.value) == [f"error: {error}; raised in actor calm-1"]


def test_an_actor_that_hangs_is_named_when_the_time_is_over(workers: dict[str, WorkerHandle]) -> None:
    call = workers["slow"].call("sleep")
    start = time.monotonic()
    with pytest.raises(WorkerTimeoutError, match=r"^actor slow did not finish sleep within 0\.5 seconds$") as caught:
        call.result(0.5)
    assert time.monotonic() - start < 20
    assert exit_status.lines_for(caught.value) == ["error: actor slow did not finish sleep within 0.5 seconds"]


def test_an_actor_that_dies_is_named_and_nobody_waits_for_it(workers: dict[str, WorkerHandle]) -> None:
    with pytest.raises(WorkerError, match=r"^actor mortal died during die: .*died") as caught:
        workers["mortal"].call("die").result(PATIENCE)
    assert "\n" not in str(caught.value)
    with pytest.raises(WorkerError, match="actor mortal died during numbers"):
        workers["mortal"].call("numbers", [1]).result(PATIENCE)
    # The others live on.
    assert workers["calm-0"].call("numbers", [1]).result(PATIENCE) == [10]


def test_an_answer_goes_from_one_actor_to_another_without_a_visit_here(workers: dict[str, WorkerHandle]) -> None:
    numbers = workers["calm-0"].call("numbers", [1, 2])
    assert workers["calm-1"].call("numbers", numbers).result(PATIENCE) == [100, 200]
    # What the first one raised is raised by the second.
    with pytest.raises(ValueError, match="bad row"):
        workers["calm-1"].call("numbers", workers["calm-0"].call("fail", ValueError("bad row"))).result(PATIENCE)


def test_the_end_of_a_call_is_told_once_whatever_it_is(workers: dict[str, WorkerHandle]) -> None:
    for call in (workers["calm-0"].call("numbers", [1]), workers["calm-1"].call("fail", ValueError("x"))):
        told: queue.SimpleQueue[str] = queue.SimpleQueue()
        call.when_done(lambda told=told: told.put("done"))
        assert told.get(timeout=PATIENCE) == "done"
        call.when_done(lambda told=told: told.put("done already"))
        assert told.get(timeout=PATIENCE) == "done already"
        assert told.empty()


def test_what_building_a_role_raises_reaches_the_driver_as_it_is() -> None:
    requests = [request("broken", label="impossible")]
    with (
        pytest.raises(ValueError, match=r"^role\.label='impossible'; .*: rename it") as caught,
        ray_workers(requests, OFFERED, timeout_seconds=PATIENCE),
    ):
        pytest.fail("a role that cannot be built must not be handed out")
    assert caught.value.__notes__ == ["raised in actor broken"]
    assert exit_status.status_of(caught.value) == exit_status.USER_ERROR


def test_an_impossible_placement_is_refused_before_any_actor_starts(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    requests = [request("small", trace=str(trace)), request("large", cpus=2.5)]
    with (
        pytest.raises(ValueError, match=r"^placement: 2 actors ask for 2\.6 CPUs .* the cluster has 2 CPUs"),
        ray_workers(requests, OFFERED, timeout_seconds=PATIENCE),
    ):
        pytest.fail("an impossible placement must not open")
    assert not trace.exists()


def test_resources_that_others_hold_are_an_error_in_bounded_time_and_free_afterwards() -> None:
    available = ray.available_resources()["CPU"]
    everything = [request("greedy", cpus=available)]
    with (
        ray_workers(everything, OFFERED, timeout_seconds=PATIENCE),
        pytest.raises(WorkerError, match=r"^placement: 1\.5 CPUs and 0 GPUs are not free in the cluster now"),
        ray_workers([request("late", cpus=1.5)], OFFERED, timeout_seconds=1.0),
    ):
        pytest.fail("the cluster has no room")
    # What the context held is given back, also by the one that got no room; what an earlier test held may come, too.
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0.0) < available - 1e-6 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] >= available - 1e-6


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_an_error_at_once(scheme: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but never listening
        address = f"{scheme}127.0.0.1:{unused.getsockname()[1]}"
        start = time.monotonic()
        with (
            pytest.raises(
                WorkerError, match=rf"^placement\.address: no Ray cluster answers at '{address}' \(.*refused"
            ),
            ray_cluster(address),
        ):
            pytest.fail("there is no such cluster")
    assert time.monotonic() - start < 5


def test_a_cluster_that_this_process_has_joined_is_used_and_left_running() -> None:
    with ray_cluster(None) as offered:
        assert offered == OFFERED
    assert ray.is_initialized()
