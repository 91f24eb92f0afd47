"""What a placement asks for, what a machine offers, and the refusal of what can never fit. Needs no Ray."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resources:
    """What one actor asks for, or a node offers."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs and {self.gpus:g} GPUs"


def refuse_impossible(requested: Sequence[Resources], offered: Resources) -> None:
    """Refuses a placement that asks for more than the whole cluster has, before anything waits for it.

    Raises:
        ValueError: naming the request, the offer and what to change.
    """
    total = total_resources(requested)
    if total.cpus <= offered.cpus + 1e-9 and total.gpus <= offered.gpus + 1e-9:
        return
    share_cpus = offered.cpus / len(requested)
    share_gpus = offered.gpus / len(requested)
    raise ValueError(
        f"placement: {len(requested)} actors ask for {total} in total, the cluster has {offered}; "
        "nearest layout that fits: "
        f"cpus={share_cpus:.2g} gpus={share_gpus:.2g} for each actor, or placement.kind=colocated"
    )


def local_resources() -> Resources:
    """CPUs and GPUs of this machine that this process may use, without importing torch or starting Ray."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    else:
        gpus = len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()])
    return Resources(float(len(os.sched_getaffinity(0))), float(gpus))


def total_resources(resources: Iterable[Resources]) -> Resources:
    """The sum over actors."""
    resources = list(resources)
    return Resources(sum(r.cpus for r in resources), sum(r.gpus for r in resources))
