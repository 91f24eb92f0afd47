"""A training stage as several ranks, each in a Ray actor: rank 0 writes the run folder, and what it prints shows here.

Owns start, end and the terminal. What a rank computes is the stage's business (`rlhf.trainers`): every rank runs the
same function, with its `Ranks`.
"""

import contextlib
import io
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from policies.loading import resolve_device
from rlhf.config import PretrainConfig, RewardConfig, SftConfig
from rlhf.runtime.config import RanksConfig
from rlhf.runtime.distributed import ALONE, MeetingPoint, Ranks, join_ranks, naming_the_rank
from rlhf.runtime.placement import Resources
from rlhf.runtime.rank_actors import AnswerOfAll, meet
from rlhf.runtime.run_folder import refuse_existing_run
from rollout.calls import WorkerHandle

_SECONDS_BETWEEN_LINES = 0.2


RankedConfig = PretrainConfig | RewardConfig | SftConfig
"""Configurations with `ranks`."""


class Train(Protocol):
    """What each rank runs: a function of a module, so that another process can import it."""

    def __call__(self, config: Any, *, resume: bool, ranks: Ranks) -> None:
        """Trains."""
        ...


class StageRank:
    """One rank of a stage.

    Args:
        config: The stage's configuration.
        ranks: Which rank this is.
        threads: torch threads of this process.
    """

    def __init__(self, config: RankedConfig, *, ranks: Ranks, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config, self._ranks = config, ranks
        self._meeting_point: MeetingPoint | None = None
        self._terminal = io.StringIO()
        self._told = 0

    def open_meeting_point(self, timeout_seconds: float) -> str:
        """Lets the other ranks in; returns the address to `join`."""
        self._meeting_point = MeetingPoint.on_this_node(timeout_seconds=timeout_seconds)
        return self._meeting_point.address

    def join(self, address: str, timeout_seconds: float) -> None:
        """Meets the other ranks."""
        device = resolve_device(self._config.model.device)
        join_ranks(self._ranks, address, device=device, timeout_seconds=timeout_seconds)

    def train(self, train: Train, *, resume: bool) -> None:
        """Runs the stage beside the other ranks."""
        with contextlib.redirect_stdout(self._terminal), naming_the_rank(self._ranks):
            train(self._config, resume=resume, ranks=self._ranks)

    def printed(self) -> str:
        """What has been printed since the last call; may be called while `train` runs."""
        text = self._terminal.getvalue()
        new, self._told = text[self._told :], len(text)
        return new


def run_in_ranks(train: Train, config: RankedConfig, *, resume: bool) -> None:
    """Runs `train(config, resume=..., ranks=...)` on `config.ranks.workers` ranks; one is this process.

    Raises:
        ValueError: the run folder holds a run already, the cluster cannot hold the ranks, or the stage refuses its
            configuration.
        WorkerError: a rank was lost.
    """
    if config.ranks.workers == 1:
        train(config, resume=resume, ranks=ALONE)
        return
    if not resume:
        refuse_existing_run(config.run_dir)
    from rlhf.runtime.cluster import (  # noqa: PLC0415 - Ray need not be installed for one rank
        ActorRequest,
        ray_cluster,
        ray_workers,
    )

    wanted: RanksConfig = config.ranks
    resources, threads = Resources(wanted.cpus, wanted.gpus), max(1, int(wanted.cpus))
    requests = [
        ActorRequest(
            f"rank-{index}",
            resources,
            StageRank,
            {"config": config, "ranks": Ranks(index, wanted.workers), "threads": threads},
            concurrency=2,
        )
        for index in range(wanted.workers)
    ]
    with (
        ray_cluster(wanted.address) as offered,
        ray_workers(requests, offered, timeout_seconds=wanted.timeout_seconds) as workers,
    ):
        meet(workers, timeout_seconds=wanted.timeout_seconds)
        with _shown_here(workers[0]):
            answers = [worker.call("train", train, resume=resume) for worker in workers]
            # However long it takes: each wait of one rank for another has its own limit.
            AnswerOfAll([worker.name for worker in workers], "train", answers).result(math.inf)


@contextmanager
def _shown_here(first: WorkerHandle) -> Iterator[None]:
    """Prints what the first rank prints, as it comes."""
    is_over = threading.Event()
    thread = threading.Thread(target=_relay, args=(first, is_over.wait), daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _relay(first: WorkerHandle, wait: Callable[[float], bool]) -> None:
    is_over = False
    while not is_over:
        is_over = wait(_SECONDS_BETWEEN_LINES)
        try:
            text = first.call("printed").result(_SECONDS_BETWEEN_LINES + 30.0)
        except RuntimeError:
            return  # The rank is gone; the wait for its answer says why.
        print(text, end="", flush=True)  # noqa: T201 - the terminal's lines of the stage
