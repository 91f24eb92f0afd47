"""The learner as several ranks that compute every update together.

    driver --call--> LearnerGroup --the same call--> LearnerRank 0 .. N-1 --> RoleHost --> Learner

Owns which ranks a call goes to. The wait for all of them is `rlhf.runtime.rank_actors`; what ranks do with each other
stands in `rlhf.learner`; who starts and ends them is the placement's business. A rank that is lost takes the run's
state in memory with it, so it ends the run.
"""

from collections.abc import Callable, Sequence
from typing import Any

from policies.loading import resolve_device
from rlhf.config import PpoConfig
from rlhf.roles import RoleHost
from rlhf.runtime.config import SplitPlacement
from rlhf.runtime.distributed import MeetingPoint, Ranks, join_ranks, naming_the_rank
from rlhf.runtime.rank_actors import AnswerOfAll, meet
from rlhf.runtime.workers import WorkerError
from rollout.calls import PendingCall, WorkerHandle

_FIRST_RANK_ANSWERS = frozenset(
    {"context_tokens", "packed_update", "open_broadcast", "join_broadcast", "broadcast_update"}
)
"""Calls that need no other rank."""
_FIRST_RANK_HOLDS_ALL = frozenset({"pack_update", "flatten_update", "state", "save_model"})
"""Calls that need the others only to gather what is cut."""


class LearnerRank:
    """One rank's process: meets the others, builds the learner role, and runs what all of them run.

    Args:
        config: The run's configuration.
        ranks: Which rank this is.
        threads: torch threads of this process.
    """

    def __init__(self, config: PpoConfig, *, ranks: Ranks, threads: int | None = None) -> None:
        self._host: RoleHost | None = None
        self._config, self._ranks, self._threads = config, ranks, threads
        self._meeting_point: MeetingPoint | None = None

    def open_meeting_point(self, timeout_seconds: float) -> str:
        """Lets the other ranks in; returns the address to `join`."""
        self._meeting_point = MeetingPoint.on_this_node(timeout_seconds=timeout_seconds)
        return self._meeting_point.address

    def join(self, address: str, timeout_seconds: float) -> None:
        """Meets the other ranks and builds the learner.

        Raises:
            RankError: they did not come in time.
            ValueError: the learner refuses its configuration, or another rank has another model.
        """
        device = resolve_device(self._config.model.device)
        join_ranks(self._ranks, address, device=device, timeout_seconds=timeout_seconds)
        with naming_the_rank(self._ranks):
            self._host = RoleHost(self._config, ("learner",), threads=self._threads, ranks=self._ranks)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """The methods of `RoleHost`, run beside the other ranks. Rank 0 answers; the others' answers stay here."""
        run = getattr(self._host, method)

        def run_as_rank(*arguments: Any, **keywords: Any) -> Any:
            with naming_the_rank(self._ranks):
                answer = run(*arguments, **keywords)
            return answer if self._ranks.is_first else None

        return run_as_rank


class LearnerGroup:
    """The handle of all ranks: to its caller, one learner (`rollout.calls.WorkerHandle`).

    Attributes:
        workers: Handles of the ranks.

    Args:
        workers: Handles of `LearnerRank` objects, rank 0 first, which have joined.
        is_sharded: Layers are cut, so that every rank is needed to gather weights.
        share: Makes an argument that several workers take from one copy.
    """

    name = "learner"

    def __init__(
        self, workers: Sequence[WorkerHandle], *, is_sharded: bool, share: Callable[[Any], Any] = lambda value: value
    ) -> None:
        self.workers = tuple(workers)
        self._share = share
        self._alone = _FIRST_RANK_ANSWERS if is_sharded else _FIRST_RANK_ANSWERS | _FIRST_RANK_HOLDS_ALL

    def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
        """Starts `method` on every rank that it needs; keywords are for small things."""
        if method in self._alone:
            return self.workers[0].call(method, *arguments, **keywords)
        shared = [self._share(argument) for argument in arguments]
        answers = [worker.call(method, *shared, **keywords) for worker in self.workers]
        return AnswerOfAll([worker.name for worker in self.workers], method, answers)

    def restart(self) -> PendingCall:
        """Not possible: what a rank has learned since the last checkpoint is on it alone.

        Raises:
            WorkerError: always.
        """
        raise WorkerError("a rank of the learner cannot be replaced within a run; continue with --resume")


def join_group(
    workers: Sequence[WorkerHandle], placement: SplitPlacement, *, share: Callable[[Any], Any]
) -> LearnerGroup:
    """Makes workers that hold `LearnerRank` objects one learner.

    Raises:
        ValueError: the learner refuses its configuration.
        WorkerError: the ranks did not find each other in time.
    """
    meet(workers, timeout_seconds=placement.timeout_seconds)
    return LearnerGroup(workers, is_sharded=placement.learner.sharding == "full", share=share)
