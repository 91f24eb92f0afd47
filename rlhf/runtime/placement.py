"""What a placement asks for, what a machine offers, and the refusal of what can never fit. Needs no Ray."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf.runtime.config import ColocatedPlacement, RoleResources, SplitPlacement

RoleName = Literal["rollout", "reward", "reference", "learner"]
ALL_ROLES: tuple[RoleName, ...] = ("rollout", "reward", "reference", "learner")


@dataclass(frozen=True, slots=True)
class Resources:
    """What one actor asks for, or a node offers."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


@dataclass(frozen=True, slots=True)
class Seat:
    """One actor of a placement.

    Attributes:
        roles: The roles it hosts.
        resources: What it reserves.
        ranks: Where it is one of several ranks of the learner: which one, of how many.
    """

    roles: tuple[RoleName, ...]
    resources: Resources
    ranks: tuple[int, int] | None = None

    def __str__(self) -> str:
        rank = "" if self.ranks is None else f" (rank {self.ranks[0]} of {self.ranks[1]})"
        return f"{', '.join(self.roles)}{rank}; reserves {self.resources}"


def seats_of(placement: ColocatedPlacement | SplitPlacement, offered: Resources) -> dict[str, Seat]:
    """Actors by name. A colocated actor without own numbers takes all CPUs, and one GPU where there is one."""
    if isinstance(placement, ColocatedPlacement):
        cpus = offered.cpus if placement.cpus is None else placement.cpus
        gpus = min(1.0, offered.gpus) if placement.gpus is None else placement.gpus
        return {"colocated": Seat(ALL_ROLES, Resources(cpus, gpus))}
    seats: dict[str, Seat] = {}
    fanned: Mapping[RoleName, RoleResources] = {
        "rollout": placement.rollout,
        "reward": placement.reward,
        "reference": placement.reference,
    }
    for role, wanted in fanned.items():
        for index in range(wanted.workers):
            seats[f"{role}-{index}"] = Seat((role,), Resources(wanted.cpus, wanted.gpus))
    learner = Resources(placement.learner.cpus, placement.learner.gpus)
    count = placement.learner.workers
    if count == 1:
        return seats | {"learner": Seat(("learner",), learner)}
    return seats | {f"learner-{index}": Seat(("learner",), learner, (index, count)) for index in range(count)}


def refuse_impossible(requested: Sequence[Resources], offered: Resources) -> None:
    """Refuses a placement that asks for more than the whole cluster has, before anything waits for it.

    Raises:
        ValueError: naming the request, the offer and what to change.
    """
    total = total_resources(requested)
    if total.cpus <= offered.cpus + 1e-9 and total.gpus <= offered.gpus + 1e-9:
        return
    # Rounded down, so that following the advice works.
    share_cpus, share_gpus = (math.floor(100 * have / len(requested)) / 100 for have in (offered.cpus, offered.gpus))
    raise ValueError(
        f"placement: {len(requested)} actors ask for {total} in total, the cluster has {offered}; "
        "nearest layout that fits: "
        f"cpus={share_cpus:g} gpus={share_gpus:g} for each actor, or fewer actors (of PPO: placement.kind=colocated)"
    )


def refuse_homeless(requested: Mapping[str, Resources], nodes: Sequence[Resources]) -> None:
    """Refuses an actor that fits on no node: actors are spread over nodes, and one of them is never split.

    Raises:
        ValueError: naming the actor, what it asks for and the largest node.
    """
    for name, wanted in requested.items():
        if not any(wanted.cpus <= node.cpus + 1e-9 and wanted.gpus <= node.gpus + 1e-9 for node in nodes):
            raise ValueError(
                f"placement: actor {name} asks for {wanted} and fits on none of the cluster's {len(nodes)} nodes; the "
                f"largest has {largest_node(nodes)}: ask for less, and for more workers"
            )


def largest_node(nodes: Sequence[Resources]) -> Resources:
    """The node with the most GPUs, and of those the one with the most CPUs."""
    return max(nodes, key=lambda node: (node.gpus, node.cpus))


def local_resources() -> Resources:
    """CPUs and GPUs of this machine that this process may use, without importing torch or starting Ray."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    else:
        gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
    # macOS knows no affinity.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Resources(float(cpus), float(gpus))


def total_resources(resources: Iterable[Resources]) -> Resources:
    """The sum over actors."""
    resources = list(resources)
    return Resources(sum(r.cpus for r in resources), sum(r.gpus for r in resources))
