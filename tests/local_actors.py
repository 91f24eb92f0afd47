"""Split placement without Ray: every actor's object, with models of its own, in this process."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext

import pytest

from rlhf.runtime import cluster
from rlhf.runtime.cluster import ActorRequest
from rlhf.runtime.placement import Resources
from rlhf.runtime.workers import LocalWorker
from rollout.calls import WorkerHandle
from tests.rollout.fakes import MortalHandle


def without_ray(monkeypatch: pytest.MonkeyPatch, *, dies_at: Mapping[str, Collection[int]] | None = None) -> None:
    """Puts `open_roles` on objects of this process.

    Args:
        monkeypatch: Undoes it.
        dies_at: By actor, the indices of those `generate` calls at which it dies; it can be started again.
    """
    fates = dies_at or {}

    @contextmanager
    def actors(
        requests: Sequence[ActorRequest], offered: Resources, *, timeout_seconds: float
    ) -> Iterator[list[WorkerHandle]]:
        del offered, timeout_seconds
        yield [_actor(request, fates.get(request.name)) for request in requests]

    monkeypatch.setattr(cluster, "ray_cluster", lambda _: nullcontext(Resources(2.0, 0.0)))
    monkeypatch.setattr(cluster, "node_resources", lambda: [Resources(2.0, 0.0)])
    monkeypatch.setattr(cluster, "ray_workers", actors)


def _actor(request: ActorRequest, dies_at: Collection[int] | None) -> WorkerHandle:
    if dies_at is None:
        return LocalWorker(request.name, request.factory(**request.keywords))
    return MortalHandle(request.name, lambda: request.factory(**request.keywords), dies_at=dies_at)
