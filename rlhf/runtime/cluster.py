"""Roles in Ray actors: start of Ray, of a placement group and its actors, and handles whose waits have a timeout.

The roles themselves are plain classes (`rlhf.roles`); nothing here knows what they compute.
"""

import logging
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf.process_environment import PROCESS_ENVIRONMENT
from rlhf.runtime.placement import Resources, local_resources, refuse_homeless, refuse_impossible, total_resources
from rlhf.runtime.workers import WorkerDiedError, WorkerError, WorkerTimeoutError
from rollout.calls import PendingCall, WorkerHandle

_CONNECT_SECONDS = 10.0


class _RayFuture:
    def __init__(self, name: str, method: str, reference: "ray.ObjectRef[Any]") -> None:
        self._name, self._method = name, method
        self.reference = reference

    def result(self, timeout_seconds: float) -> Any:
        try:
            return ray.get(self.reference, timeout=timeout_seconds)
        except ray.exceptions.GetTimeoutError as error:
            raise WorkerTimeoutError(
                f"actor {self._name} did not finish {self._method} within {timeout_seconds:g} seconds"
            ) from error
        except ray.exceptions.RayTaskError as error:
            # What the role raised is what the caller must see: a ValueError there is a user's error here.
            error.cause.add_note(f"raised in actor {self._name}")
            raise error.cause from error
        # A lost object is an answer that went down with its node.
        except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
            raise WorkerDiedError(f"actor {self._name} died during {self._method}: {_reason(error)}") from error

    def when_done(self, notify: Callable[[], None]) -> None:
        # From a thread of Ray's.
        self.reference.future().add_done_callback(lambda _: notify())


def _reason(error: ray.exceptions.RayError) -> str:
    """The one line of Ray's report that says why."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    # Where the actor's own code could not be loaded, a traceback follows, whose end is the reason.
    return lines[-1] if "creation task" in lines[0] else lines[0]


class RayWorker:
    """A role object in a Ray actor.

    Args:
        name: Name for errors.
        start: Starts an actor; it builds its object when `build` tells it to.
    """

    def __init__(self, name: str, start: Callable[[], Any]) -> None:
        self.name = name
        self._start = start
        self._actor = start()

    def build(self) -> PendingCall:
        """Builds the role object; the answer holds what that raised."""
        return _RayFuture(self.name, "start-up", self._actor.build.remote())

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        """Sends the call; arguments travel through Ray's object store, another actor's answer from there directly."""
        # Ray resolves references that are arguments themselves, not those inside of a tuple.
        sent = [argument.reference if isinstance(argument, _RayFuture) else argument for argument in arguments]
        return _RayFuture(self.name, method, self._actor.call.remote(method, *sent, **keywords))

    def restart(self) -> PendingCall:
        """Ends the actor and starts another one on the same share of the cluster.

        Not by Ray's own `max_restarts`: that helps against death only, and an actor that hangs is to be replaced, too.
        """
        self.kill()
        self._actor = self._start()
        return self.build()

    def kill(self) -> None:
        """Ends the actor, whatever it is doing."""
        ray.kill(self._actor)


@dataclass(frozen=True, slots=True)
class ActorRequest:
    """One actor to start.

    Attributes:
        name: For errors.
        resources: What it reserves.
        factory: Builds its object there.
        keywords: Of the factory.
        concurrency: Calls that run at the same time; those of one caller start in order only where it is 1.
    """

    name: str
    resources: Resources
    factory: Callable[..., object]
    keywords: Mapping[str, Any]
    concurrency: int = 1


@contextmanager
def ray_cluster(address: str | None) -> Iterator[Resources]:
    """Connects to `address`, or starts a local cluster that ends with the context; yields what it offers.

    A cluster that this process is already connected to is used and left running; one that somebody else has started on
    this machine is joined only by its address.

    Raises:
        WorkerError: no cluster answers at `address`, or it does not let this process in.
    """
    listens = address is not None and _require_answer(address)
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(
                # "local", because without an address Ray joins whatever cluster it finds on this machine.
                address=address or "local",
                num_cpus=int(local_resources().cpus) if address is None else None,
                include_dashboard=False if address is None else None,
                log_to_driver=False,
                logging_level=logging.ERROR,
                # A local cluster inherits this process' environment; a running one has its own.
                runtime_env={"env_vars": PROCESS_ENVIRONMENT} if address is not None else None,
            )
        except ConnectionError as error:
            raise (_no_entry(address, error) if listens else _no_cluster(address, error)) from error
    try:
        offered = ray.cluster_resources()
        yield Resources(offered.get("CPU", 0.0), offered.get("GPU", 0.0))
    finally:
        if started:
            ray.shutdown()


def node_resources() -> list[Resources]:
    """What each node of the cluster offers that this process has joined."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Resources(offered.get("CPU", 0.0), offered.get("GPU", 0.0)) for offered in alive]


def put_once(value: object) -> object:
    """An argument for calls to several actors, of which the object store holds one copy."""
    return _RayFuture("driver", "put", ray.put(value))


def _require_answer(address: str) -> bool:
    """Refuses an address where nothing listens; Ray itself would go on trying for minutes.

    Returns:
        Whether something is known to listen: "auto" and the like are Ray's to resolve.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return False
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from error
    return True


def _no_entry(address: str | None, error: Exception) -> WorkerError:
    """Ray does not say why; a token is the usual reason, another service behind the port the other one."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return WorkerError(
        f"placement.address: the Ray cluster at {address!r} does not let this process in ({reason}); if it asks for a "
        "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH), else correct the address"
    )


def _no_cluster(address: str | None, error: Exception) -> WorkerError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return WorkerError(
        f"placement.address: no Ray cluster answers at {address!r} ({reason}); start it or correct the address, or set "
        "placement.address=null for a local one"
    )


@contextmanager
def ray_workers(
    requests: Sequence[ActorRequest], offered: Resources, *, timeout_seconds: float
) -> Iterator[list[WorkerHandle]]:
    """Starts one actor a request in one placement group, and yields handles once all are built.

    Raises:
        ValueError: the cluster can never hold them; the message gives the nearest layout that fits.
        WorkerError: they could not be placed or built in time.
        Exception: what building one of them raised.
    """
    refuse_impossible([request.resources for request in requests], offered)
    refuse_homeless({request.name: request.resources for request in requests}, node_resources())
    # On as few nodes as hold them: what is close talks faster.
    group = placement_group([_bundle(request.resources) for request in requests], strategy="PACK")
    workers: list[RayWorker] = []
    try:
        if not group.wait(timeout_seconds=min(timeout_seconds, 60.0)):
            wanted = total_resources(request.resources for request in requests)
            raise WorkerError(
                f"placement: {wanted} are not free in the cluster now; other jobs hold them, or no node has enough "
                "left for the next actor"
            )
        for index, request in enumerate(requests):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            workers.append(RayWorker(request.name, partial(_start, request, strategy)))
        for starting in [worker.build() for worker in workers]:
            starting.result(timeout_seconds)
        yield list(workers)
    finally:
        for worker in workers:
            worker.kill()
        remove_placement_group(group)


def _bundle(resources: Resources) -> dict[str, float]:
    bundle = {"CPU": resources.cpus, "GPU": resources.gpus}
    # A bundle must not be empty; this much of a CPU is nothing.
    return {name: amount for name, amount in bundle.items() if amount > 0} or {"CPU": 0.001}


def _start(request: ActorRequest, strategy: PlacementGroupSchedulingStrategy) -> Any:
    options = {
        "num_cpus": request.resources.cpus,
        "num_gpus": request.resources.gpus,
        "max_concurrency": request.concurrency,
        "scheduling_strategy": strategy,
    }
    return ray.remote(_Actor).options(**options).remote(request.factory, dict(request.keywords))


class _Actor:
    """The shell in the actor's process: builds the role object and forwards calls to it."""

    def __init__(self, factory: Callable[..., object], keywords: dict[str, Any]) -> None:
        self._factory, self._keywords = factory, keywords

    def build(self) -> None:
        """Builds the object. Not in the constructor: an error there reaches the driver as text, without its type."""
        self._target = self._factory(**self._keywords)

    def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
        """Runs `method` of the role object."""
        return getattr(self._target, method)(*arguments, **keywords)
