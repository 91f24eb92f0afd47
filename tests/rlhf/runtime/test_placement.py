"""Who lives where, and the refusal of what can never fit."""

import os
import re

import pytest

from rlhf.runtime.config import ColocatedPlacement, RoleResources, SplitPlacement
from rlhf.runtime.placement import ALL_ROLES, Resources, local_resources, refuse_impossible, seats_of, total_resources


def test_a_colocated_actor_takes_all_cpus_and_at_most_one_gpu_unless_told() -> None:
    for gpus, expected in ((0.0, 0.0), (0.5, 0.5), (8.0, 1.0)):
        (seat,) = seats_of(ColocatedPlacement(), Resources(16, gpus)).values()
        assert (seat.roles, seat.resources) == (ALL_ROLES, Resources(16, expected))
    (seat,) = seats_of(ColocatedPlacement(cpus=2, gpus=0), Resources(16, 8)).values()
    assert seat.resources == Resources(2, 0)


def test_split_gives_each_worker_of_each_role_a_name_and_its_share() -> None:
    placement = SplitPlacement(rollout=RoleResources(workers=2, cpus=1.5, gpus=0.5), reward=RoleResources(cpus=0.5))
    seats = seats_of(placement, Resources(8, 1))
    assert list(seats) == ["rollout-0", "rollout-1", "reward-0", "reference-0", "learner"]
    assert seats["rollout-1"].roles == ("rollout",)
    assert seats["rollout-1"].resources == Resources(1.5, 0.5)
    assert seats["learner"].roles == ("learner",)
    assert total_resources(seat.resources for seat in seats.values()) == Resources(4.0, 1.0)


@pytest.mark.parametrize(
    ("requested", "offered"),
    [
        ([Resources(1, 0)] * 3, Resources(2, 0)),
        ([Resources(0.7, 0)] * 3, Resources(2, 0)),
        ([Resources(0.25, 1)] * 4, Resources(64, 2)),
        ([Resources(3, 0)], Resources(2, 0)),
        ([Resources(1, 1)], Resources(8, 0)),
        ([Resources(4, 1)] * 7, Resources(5, 3)),
    ],
)
def test_an_impossible_request_is_refused_and_the_advice_fits(requested: list[Resources], offered: Resources) -> None:
    with pytest.raises(ValueError, match="placement: ") as caught:
        refuse_impossible(requested, offered)
    message = str(caught.value)
    assert message.startswith("placement: ")
    assert "\n" not in message
    assert f"{len(requested)} actors ask for {total_resources(requested)}" in message
    assert f"the cluster has {offered}" in message
    advice = re.search(r"cpus=([\d.]+) gpus=([\d.]+) for each actor", message)
    assert advice is not None
    refuse_impossible([Resources(float(advice[1]), float(advice[2]))] * len(requested), offered)


def test_what_fits_exactly_is_accepted_in_spite_of_rounding() -> None:
    refuse_impossible([Resources(0.1, 0.1)] * 10, Resources(1.0, 1.0))
    refuse_impossible([], Resources(0, 0))


@pytest.mark.parametrize(("visible", "gpus"), [("", 0), ("-1", 0), ("0", 1), ("0,3", 2), ("GPU-8f3e", 1)])
def test_visible_gpus_are_those_of_the_environment(monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert local_resources().gpus == gpus


def test_gpus_are_counted_by_their_device_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "listdir", lambda _: ["null", "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"])
    assert local_resources().gpus == 2


def test_cpus_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert local_resources().cpus == 3
    # Elsewhere than on Linux there is no such call.
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert local_resources().cpus == 10
