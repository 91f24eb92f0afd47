"""Handles of roles in this process, the fan-out over workers, and how a failed wait ends a command."""

import pytest

from rlhf import exit_status
from rlhf.runtime.workers import LocalWorker, WorkerError, WorkerTimeoutError, fan_out


class Role:
    """Answers with what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[str]]] = []

    def pairs(self, numbers: list[int], letters: list[str]) -> list[tuple[int, str]]:
        self.calls.append((numbers, letters))
        return list(zip(numbers, letters, strict=True))

    def fail(self) -> None:
        raise KeyError("inside")


def test_a_local_call_runs_at_once_and_raises_what_it_raised() -> None:
    worker = LocalWorker("driver", Role())
    assert worker.call("pairs", [1], letters=["a"]).result(0.0) == [(1, "a")]
    with pytest.raises(KeyError, match="inside"):
        worker.call("fail")


@pytest.mark.parametrize(("workers", "starts"), [(1, [0]), (2, [0, 3]), (3, [0, 2, 4]), (7, [0, 1, 2, 3, 4])])
def test_columns_are_cut_at_the_same_places_and_gathered_in_order(workers: int, starts: list[int]) -> None:
    roles = [Role() for _ in range(workers)]
    handles = [LocalWorker(f"w{index}", role) for index, role in enumerate(roles)]
    shares = fan_out(handles, "pairs", [1, 2, 3, 4, 5], list("abcde"))
    assert [start for start, _ in shares] == starts
    joined = [pair for _, answer in shares for pair in answer.result(1.0)]
    assert joined == list(zip([1, 2, 3, 4, 5], "abcde", strict=True))
    # A worker without a share is not called.
    assert sum(len(role.calls) for role in roles) == min(workers, 5)


@pytest.mark.parametrize("error", [WorkerError("actor reward-0 died"), WorkerTimeoutError("actor learner is silent")])
def test_a_worker_that_fails_ends_a_command_with_its_own_words(error: WorkerError) -> None:
    assert exit_status.status_of(error) == exit_status.OUTSIDE_FAILURE
    assert exit_status.lines_for(error) == [f"error: {error}"]


def test_the_answer_of_one_local_worker_is_an_argument_of_another() -> None:
    numbers = LocalWorker("a", Role()).call("pairs", [1, 2], list("ab"))
    assert LocalWorker("b", Role()).call("pairs", numbers, ["x", "y"]).result(0.0) == [((1, "a"), "x"), ((2, "b"), "y")]


def test_the_end_of_a_local_call_is_told_at_once() -> None:
    told: list[str] = []
    LocalWorker("a", Role()).call("pairs", [], []).when_done(lambda: told.append("done"))
    assert told == ["done"]


def test_a_local_worker_is_replaced_by_a_new_object_or_not_at_all() -> None:
    first = Role()
    worker = LocalWorker("a", first, build=Role)
    worker.call("pairs", [1], ["a"])
    worker.restart().result(0.0)
    assert worker.call("pairs", [2], ["b"]).result(0.0) == [(2, "b")]
    assert first.calls == [([1], ["a"])]
    with pytest.raises(WorkerError, match="driver lives in the driver's process and cannot be replaced"):
        LocalWorker("driver", first).restart()
