"""Several ranks behind the handle of one learner: who is called, whose answer counts, and who is blamed."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from rlhf.learner_group import LearnerGroup
from rlhf.runtime import placement
from rlhf.runtime.config import LearnerResources, SplitPlacement
from rlhf.runtime.distributed import RankError
from rlhf.runtime.placement import Resources, Seat, refuse_homeless, seats_of
from rlhf.runtime.rank_actors import AnswerOfAll
from rlhf.runtime.workers import LocalWorker, WorkerDiedError, WorkerError, WorkerTimeoutError
from rollout.calls import PendingCall


class Rank:
    """Keeps what it was called for."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.calls: list[tuple[object, ...]] = []

    def __getattr__(self, method: str) -> Callable[..., str]:
        def run(*arguments: Any, step: int = 0) -> str:
            self.calls.append((method, *arguments, step))
            return f"answer of {self.index}"

        return run


class Scripted:
    """An answer that comes after some seconds, or never."""

    def __init__(self, outcome: object, after: float | None = 0.0) -> None:
        self._outcome, self._after = outcome, after

    def result(self, timeout_seconds: float) -> Any:
        del timeout_seconds
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def when_done(self, notify: Callable[[], None]) -> None:
        if self._after is None:
            return
        timer = threading.Timer(self._after, notify)
        timer.daemon = True
        timer.start()


def group_of(ranks: list[Rank], *, is_sharded: bool, copies: list[Any] | None = None) -> LearnerGroup:
    def share(value: Any) -> Any:
        if copies is not None:
            copies.append(value)
        return value

    workers = [LocalWorker(f"learner-{rank.index}", rank) for rank in ranks]
    return LearnerGroup(workers, is_sharded=is_sharded, share=share)


def answer_of(*answers: PendingCall) -> AnswerOfAll:
    return AnswerOfAll([f"learner-{index}" for index in range(len(answers))], "update", answers)


def test_every_rank_gets_the_call_and_the_first_one_answers() -> None:
    ranks, copies = [Rank(0), Rank(1), Rank(2)], []
    answer = group_of(ranks, is_sharded=False, copies=copies).call("update", "experience", step=4)
    assert answer.result(5.0) == "answer of 0"
    assert [rank.calls for rank in ranks] == [[("update", "experience", 4)]] * 3
    # One copy for all ranks.
    assert copies == ["experience"]


@pytest.mark.parametrize(
    ("method", "is_sharded", "follows"),
    [
        ("context_tokens", True, False),
        ("packed_update", True, False),
        ("state", False, False),
        ("state", True, True),
        ("pack_update", False, False),
        ("pack_update", True, True),
        ("save_model", True, True),
        ("load_state", False, True),
        ("values", False, True),
    ],
)
def test_only_the_ranks_that_a_call_needs_get_it(method: str, *, is_sharded: bool, follows: bool) -> None:
    ranks = [Rank(0), Rank(1)]
    assert group_of(ranks, is_sharded=is_sharded).call(method).result(5.0) == "answer of 0"
    assert [len(rank.calls) for rank in ranks] == [1, int(follows)]


def test_a_rank_cannot_be_replaced() -> None:
    with pytest.raises(WorkerError, match="cannot be replaced within a run; continue with --resume"):
        group_of([Rank(0), Rank(1)], is_sharded=False).restart()


def test_the_answer_is_there_when_the_slowest_rank_is() -> None:
    assert answer_of(Scripted("mine", 0.01), Scripted(None, 0.1)).result(5.0) == "mine"


def test_ranks_that_do_not_answer_are_named() -> None:
    answer = answer_of(Scripted("mine"), Scripted(None, None), Scripted(None, None))
    with pytest.raises(
        WorkerTimeoutError, match=r"^actor learner-1, learner-2 did not finish update within 0\.2 seconds$"
    ):
        answer.result(0.2)


def test_a_rank_that_dies_ends_the_wait_at_once_although_others_hang() -> None:
    dead = WorkerDiedError("actor learner-1 died during update")
    with pytest.raises(WorkerDiedError, match="learner-1 died"):
        answer_of(Scripted("mine", None), Scripted(dead, 0.01)).result(60.0)


def test_a_death_explains_what_others_complained_of_before() -> None:
    lost = RankError("rank 0 of 2 lost the others (Connection closed by peer)")
    dead = WorkerDiedError("actor learner-1 died during update")
    with pytest.raises(WorkerDiedError, match="learner-1 died"):
        answer_of(Scripted(lost, 0.01), Scripted(dead, 0.2)).result(60.0)


def test_what_a_rank_raised_first_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.runtime.rank_actors._SECONDS_FOR_THE_CAUSE", 0.2)
    bad = ValueError("data.pretrain: row 3 is bad")
    with pytest.raises(ValueError, match="row 3 is bad"):
        answer_of(Scripted("mine", None), Scripted(bad, 0.01)).result(60.0)
    later = ValueError("another")
    with pytest.raises(ValueError, match="row 3 is bad"):
        answer_of(Scripted(later, 0.1), Scripted(bad, 0.01)).result(60.0)


# --- placement --------------------------------------------------------------------------------------------------------


def test_ranks_have_seats_of_their_own_and_one_rank_keeps_its_name() -> None:
    two = SplitPlacement(learner=LearnerResources(workers=2, cpus=1.5))
    seats = seats_of(two, Resources(8, 0))
    assert list(seats) == ["rollout-0", "reward-0", "reference-0", "learner-0", "learner-1"]
    assert seats["learner-1"] == Seat(("learner",), Resources(1.5, 0), (1, 2))
    assert str(seats["learner-1"]) == "learner (rank 1 of 2); reserves 1.5 CPUs and 0 GPUs"
    assert list(seats_of(SplitPlacement(), Resources(8, 0)))[-1] == "learner"


@pytest.mark.parametrize(
    ("learner", "message"),
    [
        ({"sharding": "full"}, "workers=1 is one: set workers=2 or more"),
        ({"workers": 2, "gpus": 0.5}, r"gpus=0\.5 with workers=2: ranks cannot share a GPU"),
    ],
)
def test_ranks_that_cannot_be_are_refused(learner: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnerResources.model_validate(learner)


def test_an_actor_that_fits_on_no_node_is_named() -> None:
    nodes = [Resources(4, 0), Resources(2, 1)]
    refuse_homeless({"rollout-0": Resources(4, 0), "learner-0": Resources(2, 1)}, nodes)
    with pytest.raises(
        ValueError,
        match=r"^placement: actor learner-1 asks for 3 CPUs and 1 GPUs and fits on none of the cluster's 2 nodes; the "
        r"largest has 2 CPUs and 1 GPUs",
    ):
        refuse_homeless({"reward-0": Resources(1, 0), "learner-1": Resources(3, 1)}, nodes)
    assert placement.largest_node(nodes) == Resources(2, 1)
