"""Rollouts ahead of the learner: in order, beside it, never older than the bound, and the same after a resume."""

import json
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from rollout.buffer import Rollout, RolloutBuffer, StaleRolloutError
from rollout.types import Completion, PromptFailure, RolloutBatch
from tests.rollout.fakes import prompt_of


def rollout(*versions: int, metrics: dict[str, float] | None = None) -> Rollout:
    """One sample a version, the i-th of i + 1 tokens."""
    completions = [
        Completion(f"p{i}", i, np.arange(i + 1, dtype=np.int32), np.full(i + 1, -0.5 - i, np.float32), "stop", version)
        for i, version in enumerate(versions)
    ]
    failures = [PromptFailure("lost", 2, "ValueError: too long")]
    return Rollout(RolloutBatch([prompt_of(c.prompt_id) for c in completions], completions, failures), metrics or {})


def made(*versions: int) -> Callable[[], Rollout]:
    return lambda: rollout(*versions)


def versions_of(taken: Rollout) -> Sequence[int]:
    return [completion.policy_version for completion in taken.batch.completions]


def test_without_an_age_a_job_runs_at_once_in_the_callers_thread() -> None:
    buffer = RolloutBuffer(max_policy_age=0)
    threads: list[str] = []

    def job() -> Rollout:
        threads.append(threading.current_thread().name)
        return rollout(3)

    buffer.start(job)
    assert threads == [threading.current_thread().name]
    assert versions_of(buffer.take(3)) == [3]
    assert buffer.run(lambda: "done") == "done"
    with pytest.raises(KeyError, match="defect"):
        buffer.start(lambda: {}["defect"])


def test_with_an_age_a_job_runs_beside_the_caller() -> None:
    buffer = RolloutBuffer(max_policy_age=1)
    proceed = threading.Event()

    def job() -> Rollout:
        assert proceed.wait(20), "the caller never got this far"
        return rollout(0)

    buffer.start(job)
    assert len(buffer) == 1
    proceed.set()
    assert versions_of(buffer.take(1)) == [0]
    buffer.close()


def test_jobs_run_in_order_and_are_taken_in_order() -> None:
    buffer = RolloutBuffer(max_policy_age=2)
    order: list[int] = []

    def job(number: int) -> Callable[[], Rollout]:
        def run() -> Rollout:
            order.append(number)
            return rollout(number)

        return run

    for number in range(3):
        buffer.start(job(number))
    assert buffer.run(lambda: list(order)) == [0, 1, 2]
    assert [versions_of(buffer.take(2)) for _ in range(3)] == [[0], [1], [2]]
    assert len(buffer) == 0
    buffer.close()


def test_samples_older_than_the_bound_are_dropped_and_counted() -> None:
    buffer = RolloutBuffer(max_policy_age=1)
    buffer.start(made(4, 6, 5, 3))
    taken = buffer.take(6)
    assert versions_of(taken) == [6, 5]
    assert [prompt.id for prompt in taken.batch.prompts] == ["p1", "p2"]
    assert taken.metrics == {"rollout/stale": 2.0}
    assert taken.batch.failures
    buffer.close()


@pytest.mark.parametrize(("version", "age"), [(0, 0), (3, 3)])
def test_a_sample_as_old_as_the_bound_is_fresh(version: int, age: int) -> None:
    buffer = RolloutBuffer(max_policy_age=age)
    buffer.start(made(version - age))
    assert buffer.take(version).metrics == {"rollout/stale": 0.0}
    buffer.close()


def test_a_rollout_of_stale_samples_alone_is_an_error() -> None:
    buffer = RolloutBuffer(max_policy_age=1)
    buffer.start(made(1, 1))
    with pytest.raises(StaleRolloutError, match=r"all 2 samples .* older than policy version 2, .*version 3"):
        buffer.take(3)
    buffer.close()


def test_what_a_job_raises_is_raised_where_its_rollout_is_taken() -> None:
    buffer = RolloutBuffer(max_policy_age=1)
    buffer.start(lambda: {}["defect"])
    with pytest.raises(KeyError, match="defect"):
        buffer.take(0)
    buffer.close()


def test_the_state_holds_every_sample_bit_for_bit_and_waits_for_those_that_are_made() -> None:
    first = RolloutBuffer(max_policy_age=2)
    proceed = threading.Event()
    first.start(lambda: rollout(4, 4, 4, metrics={"sync/version": 4.0, "time/rollout": 0.25, "x": math.nan}))
    first.start(lambda: (proceed.wait(20), rollout(5))[1])
    threading.Timer(0.02, proceed.set).start()
    tensors, values = first.state()

    second = RolloutBuffer(max_policy_age=2)
    prompts = {f"p{i}": prompt_of(f"p{i}") for i in range(3)}
    second.load_state(tensors, json.loads(json.dumps(values)), prompts)
    assert len(second) == 2
    for expected, actual in zip((first.take(5), first.take(6)), (second.take(5), second.take(6)), strict=True):
        assert str(actual.metrics) == str(expected.metrics)
        assert actual.batch.failures == expected.batch.failures
        assert [p.id for p in actual.batch.prompts] == [p.id for p in expected.batch.prompts]
        for mine, theirs in zip(actual.batch.completions, expected.batch.completions, strict=True):
            assert (mine.prompt_id, mine.response_index) == (theirs.prompt_id, theirs.response_index)
            assert (mine.finish_reason, mine.policy_version) == (theirs.finish_reason, theirs.policy_version)
            assert (mine.token_ids.dtype, mine.logprobs.dtype) == (np.int32, np.float32)
            np.testing.assert_array_equal(mine.token_ids, theirs.token_ids)
            np.testing.assert_array_equal(mine.logprobs, theirs.logprobs)
    first.close()
    second.close()


def test_an_empty_buffer_has_an_empty_state() -> None:
    assert RolloutBuffer(max_policy_age=0).state() == ({}, [])


def test_closing_ends_the_running_job_early_and_drops_those_behind_it() -> None:
    cancelled = threading.Event()
    buffer = RolloutBuffer(max_policy_age=2, cancel=cancelled.set)
    ran: list[str] = []

    def job() -> Rollout:
        assert cancelled.wait(20), "nobody cancelled"
        raise RuntimeError("stopped")

    buffer.start(job)
    buffer.start(lambda: (ran.append("second"), rollout(0))[1])
    buffer.close()
    assert ran == []
