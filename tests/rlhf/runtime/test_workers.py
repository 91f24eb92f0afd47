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
