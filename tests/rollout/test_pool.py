"""Several rollout workers as one: shared work, proved weights, workers that die or hang, prompts that cannot be had."""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rollout.calls import PendingCall, WorkerHandle, WorkerLostError
from rollout.generation import repeat_prompts
from rollout.job_queue import NoCompletionsError
from rollout.pool import Canary, RolloutPool
from rollout.responses import NonFiniteLogitsError
from rollout.supervisor import RolloutStoppedError, RolloutTimeoutError, RolloutWorkerError
from rollout.types import Completion, Prompt, PromptFailure, RolloutBatch
from rollout.weight_sync import (
    Ack,
    CanaryMismatchError,
    ChecksumError,
    StaleWeightsError,
    WeightMismatchError,
    pack,
)
from rollout.worker import RolloutWorker
from tests.rollout.fakes import (
    AnsweringHandle,
    InProcessHandle,
    MortalHandle,
    ScriptedGenerator,
    WaitingHandle,
    Weights,
    prompt_of,
)

UPDATE = pack({"w": torch.ones(2)}, version=6)
HEADER = UPDATE.header


class Picky(ScriptedGenerator):
    """Raises where a call holds one of some prompts."""

    def __init__(self, error: Exception, *refused: str, version: int = 0) -> None:
        super().__init__(version=version)
        self._error, self._refused = error, refused

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        completions = super().generate(prompts, response_indices, seed=seed, step=step)
        if any(prompt.id in self._refused for prompt in prompts):
            raise self._error
        return completions


def handles(generators: Sequence[ScriptedGenerator]) -> list[InProcessHandle]:
    return [InProcessHandle(f"rollout-{i}", RolloutWorker(generator)) for i, generator in enumerate(generators)]


def new_worker() -> RolloutWorker:
    return RolloutWorker(ScriptedGenerator())


def pool_of(*workers: WorkerHandle, **options: Any) -> RolloutPool:
    return RolloutPool(workers, timeout_seconds=60.0, **options)


def surviving(*workers: WorkerHandle, **options: Any) -> RolloutPool:
    return pool_of(*workers, **{"responses_per_call": 1, "max_worker_restarts": 3} | options)


def sample(pool: RolloutPool, *, policy_version: int = 0, letters: str = "abc", responses: int = 3) -> RolloutBatch:
    prompts, indices = repeat_prompts([prompt_of(letter) for letter in letters], responses)
    return pool.generate(prompts, indices, seed=2, step=4, policy_version=policy_version)


def jobs_of(batch: RolloutBatch) -> list[tuple[str, int]]:
    return [(completion.prompt_id, completion.response_index) for completion in batch.completions]


ALL = [(letter, index) for letter in "abc" for index in range(3)]


# --- shared work ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"responses_per_call": 2}, {"responses_per_call": 1, "calls_in_flight": 3}])
@pytest.mark.parametrize("workers", [1, 2, 4, 20])
def test_completions_come_in_the_order_of_the_jobs_however_they_are_cut(workers: int, options: dict[str, int]) -> None:
    batch = sample(pool_of(*handles([ScriptedGenerator() for _ in range(workers)]), **options))
    assert jobs_of(batch) == ALL
    assert [prompt.id for prompt in batch.prompts] == [letter for letter, _ in ALL]
    assert batch.failures == []
    assert all(c.token_ids[1] == 4 and c.logprobs[1] == -2 for c in batch.completions)


def test_without_a_limit_every_worker_gets_one_call_and_idle_ones_none() -> None:
    generators = [ScriptedGenerator() for _ in range(2)]
    sample(pool_of(*handles(generators)))
    assert [generator.call_sizes for generator in generators] == [[5], [4]]
    generators = [ScriptedGenerator() for _ in range(10)]
    sample(pool_of(*handles(generators)))
    assert [generator.call_sizes for generator in generators] == [[1]] * 9 + [[]]


def test_no_call_is_larger_than_the_limit() -> None:
    generator = ScriptedGenerator()
    sample(pool_of(*handles([generator]), responses_per_call=4))
    assert generator.call_sizes == [3, 3, 3]


def test_a_slow_worker_gets_less_of_the_work() -> None:
    fast = InProcessHandle("fast", new_worker())
    slow = WaitingHandle("slow", new_worker(), fast, calls=7)
    batch = sample(pool_of(slow, fast, responses_per_call=1))
    assert jobs_of(batch) == ALL
    # The slow one answers for the first time when the fast one has made its seventh call.
    assert slow.count("generate") <= 2
    assert fast.count("generate") >= 7


def test_a_worker_never_has_more_calls_than_it_may() -> None:
    given: list[int] = []

    class Counting(WaitingHandle):
        open = 0

        def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
            self.open += 1
            given.append(self.open)
            answer = super().call(method, *arguments, **keywords)
            take = answer.result

            def result(timeout_seconds: float) -> Any:
                self.open -= 1
                return take(timeout_seconds)

            answer.result = result
            return answer

    sample(
        pool_of(
            Counting("one", new_worker(), InProcessHandle("-", None), calls=0), calls_in_flight=2, responses_per_call=1
        )
    )
    assert max(given) == 2
    assert len(given) == 9


# --- workers that are lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls_in_flight", [1, 2, 4])
@pytest.mark.parametrize("dies_at", [(0,), (1,), (0, 1), (2, 4)])
def test_a_worker_that_dies_in_mid_batch_is_replaced_and_its_prompts_are_done_again(
    dies_at: tuple[int, ...], calls_in_flight: int, caplog: pytest.LogCaptureFixture
) -> None:
    mortal = MortalHandle("rollout-0", new_worker, dies_at=dies_at)
    pool = surviving(mortal, calls_in_flight=calls_in_flight)
    pool.update_weights(Weights(UPDATE))
    expected = sample(pool_of(*handles([ScriptedGenerator(version=6)])), policy_version=6)
    with caplog.at_level(logging.WARNING):
        batch = sample(pool, policy_version=6)
    assert jobs_of(batch) == jobs_of(expected)
    pairs = zip(batch.completions, expected.completions, strict=True)
    assert all(np.array_equal(one.token_ids, other.token_ids) for one, other in pairs)
    assert [c.policy_version for c in batch.completions] == [6] * 9
    assert mortal.restarts == len(dies_at)
    assert "actor rollout-0 died; a new worker takes the place of rollout worker rollout-0" in caplog.text
    metrics = pool.drain_metrics()
    assert metrics["rollout/restarts"] == len(dies_at)
    assert metrics["rollout/retries"] >= len(dies_at)
    assert pool.drain_metrics() == {"rollout/restarts": 0.0, "rollout/retries": 0.0}


def test_a_new_worker_receives_the_present_weights_before_it_samples() -> None:
    mortal = MortalHandle("rollout-0", new_worker, dies_at=[1])
    pool = surviving(mortal)
    for version in (1, 2):
        pool.update_weights(Weights(pack({"w": torch.full((2,), float(version))}, version)))
    sample(pool, policy_version=2)
    methods = [method for method, _ in mortal.calls]
    assert methods[:4] == ["apply_update", "apply_update", "generate", "generate"]
    assert methods[4] == "apply_update"
    assert mortal.worker.version == 2
    assert mortal.worker._generator.loaded["w"].tolist() == [2, 2]


def test_a_new_worker_that_scores_the_canary_otherwise_does_not_sample() -> None:
    biases = iter([0.0, 0.5])
    mortal = MortalHandle("rollout-0", lambda: RolloutWorker(ScriptedGenerator(bias=next(biases))), dies_at=[0])
    pool = surviving(mortal)
    pool.update_weights(Weights(UPDATE))
    pool.verify_canary(canary_of(0.0, tolerance=0.1))
    with pytest.raises(CanaryMismatchError, match=r"rollout worker rollout-0 differs from the learner by 0\.5 nats"):
        sample(pool, policy_version=6)


def test_a_worker_that_hangs_is_replaced_when_its_time_is_over() -> None:
    hanging = MortalHandle("rollout-1", new_worker, hangs_at=[0])
    pool = RolloutPool([*handles([ScriptedGenerator()]), hanging], timeout_seconds=0.05, max_worker_restarts=1)
    assert jobs_of(sample(pool)) == ALL
    assert hanging.restarts == 1


def test_without_restarts_a_worker_that_hangs_is_named_with_the_call_and_the_limit() -> None:
    worker = InProcessHandle("rollout-0", new_worker())
    pool = RolloutPool([worker, MortalHandle("rollout-7", new_worker, hangs_at=[0])], timeout_seconds=0.05)
    with pytest.raises(RolloutTimeoutError, match=r"rollout-7 did not finish 'generate' within 0\.05 s"):
        sample(pool)
    pool = RolloutPool(
        [worker, MortalHandle("rollout-7", new_worker, hangs_at=[0], method="apply_update")], timeout_seconds=0.05
    )
    with pytest.raises(RolloutTimeoutError, match=r"rollout-7 did not finish 'apply_update'"):
        pool.update_weights(Weights(UPDATE))


def test_the_time_of_a_call_counts_from_when_it_is_the_oldest() -> None:
    class Steady(InProcessHandle):
        """Has its first answer after 0.3 s, its second after 0.6 s."""

        def call(self, method: str, *arguments: Any, **keywords: Any) -> PendingCall:
            answer = super().call(method, *arguments, **keywords)
            start = time.monotonic()
            due = start + 0.3 * len(self.calls)
            answer.when_done = lambda notify: threading.Timer(max(0.0, due - time.monotonic()), notify).start()
            return answer

    pool = RolloutPool(
        [Steady("rollout-0", new_worker())], timeout_seconds=0.5, calls_in_flight=2, responses_per_call=1
    )
    assert jobs_of(sample(pool, letters="ab", responses=1)) == [("a", 0), ("b", 0)]


def test_without_restarts_the_first_loss_ends_the_run_as_it_is() -> None:
    with pytest.raises(WorkerLostError, match=r"^actor rollout-0 died$"):
        sample(pool_of(MortalHandle("rollout-0", new_worker, dies_at=[0])))


def test_a_worker_that_is_lost_again_and_again_stops_the_run_with_the_cause() -> None:
    mortal = MortalHandle("rollout-1", new_worker, dies_at=range(100))
    pool = surviving(mortal, max_worker_restarts=2)
    pool.update_weights(Weights(UPDATE))
    message = r"rollout-1 was lost 3 times .*max_worker_restarts=2 are made good; the last time: actor rollout-1 died"
    with pytest.raises(RolloutWorkerError, match=message) as caught:
        sample(pool, policy_version=6)
    assert isinstance(caught.value.__cause__, WorkerLostError)
    assert mortal.restarts == 2


def test_losses_with_work_between_them_are_not_repeated_ones() -> None:
    mortal = MortalHandle("rollout-0", new_worker, dies_at=[1, 3, 5, 7])
    assert jobs_of(sample(surviving(mortal, max_worker_restarts=1))) == ALL
    assert mortal.restarts == 4


@pytest.mark.parametrize("method", ["apply_update", "canary"])
def test_a_worker_that_dies_between_two_rollouts_is_replaced_too(method: str) -> None:
    mortal = MortalHandle("rollout-0", new_worker, dies_at=[0], method=method)
    pool = surviving(mortal, *handles([ScriptedGenerator()]))
    assert pool.update_weights(Weights(UPDATE)) == 8
    assert pool.verify_canary(canary_of(0.0, tolerance=0.1)) == 0.0
    assert jobs_of(sample(pool, policy_version=6)) == ALL
    assert mortal.restarts == 1


def test_a_wait_can_be_ended_from_another_thread() -> None:
    pool = pool_of(MortalHandle("rollout-0", new_worker, hangs_at=[0]))
    threading.Timer(0.02, pool.stop).start()
    with pytest.raises(RolloutStoppedError):
        sample(pool)
    with pytest.raises(RolloutStoppedError):
        sample(pool)


# --- prompts that cannot be generated ---------------------------------------------------------------------------------


def test_a_prompt_that_raises_is_dropped_and_reported_by_id_and_the_others_are_there() -> None:
    generators = [Picky(ValueError("too long"), "b") for _ in range(2)]
    pool = pool_of(*handles(generators))
    batch = sample(pool, letters="abcdef", responses=2)
    assert [letter for letter, _ in jobs_of(batch)] == list("aaccddeeff")
    assert batch.failures == [PromptFailure("b", 2, "ValueError: too long")]
    assert pool.drain_metrics()["rollout/retries"] >= 2


def test_a_prompt_that_ends_every_worker_is_dropped_before_the_run_is() -> None:
    class Deadly(MortalHandle):
        def call(self, method: str, *arguments: Any, **keywords: Any) -> Any:
            if method == "generate" and any(prompt.id == "b" for prompt in arguments[0]):
                self._state = "dead"
            return super().call(method, *arguments, **keywords)

    batch = sample(surviving(Deadly("rollout-0", new_worker), responses_per_call=None), letters="abc", responses=1)
    assert [letter for letter, _ in jobs_of(batch)] == ["a", "c"]
    assert batch.failures == [PromptFailure("b", 1, "WorkerLostError: actor rollout-0 died")]


def test_when_no_prompt_works_the_run_stops_with_the_cause() -> None:
    cause = RuntimeError("out of memory")
    with pytest.raises(NoCompletionsError, match="RuntimeError: out of memory") as caught:
        sample(pool_of(*handles([Picky(cause, *"abcdef")])), letters="abcdef")
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [NonFiniteLogitsError("NaN"), KeyError("a defect")])
def test_what_is_no_fault_of_a_prompt_is_raised_at_once(error: Exception) -> None:
    generator = Picky(error, "b")
    with pytest.raises(type(error)):
        sample(pool_of(*handles([generator])))
    assert generator.call_sizes == [9]


# --- proved weights ---------------------------------------------------------------------------------------------------


def canary_of(logprob: float, *, tolerance: float) -> Canary:
    expected = [np.full(2, logprob, dtype=np.float32)]
    return Canary([np.array([1], np.int32)], [np.array([2, 3], np.int32)], expected, tolerance)


def test_a_worker_that_missed_an_update_is_found_before_it_samples() -> None:
    with pytest.raises(StaleWeightsError, match=r"rollout worker rollout-1: .*version 0, asked was 1"):
        sample(pool_of(*handles([ScriptedGenerator(version=1), ScriptedGenerator(version=0)])), policy_version=1)


def test_a_completion_of_another_version_is_found() -> None:
    class Mislabelled(ScriptedGenerator):
        def generate(self, *arguments: Any, **keywords: Any) -> list[Completion]:
            return [replace(c, policy_version=5) for c in super().generate(*arguments, **keywords)]

    with pytest.raises(StaleWeightsError, match="rollout-0 sampled prompt 'a' with policy version 5, asked was 0"):
        sample(pool_of(*handles([Mislabelled()])))


def test_an_update_brings_every_worker_to_its_version() -> None:
    generators = [ScriptedGenerator() for _ in range(3)]
    pool = pool_of(*handles(generators))
    assert pool.update_weights(Weights(UPDATE)) == 8
    assert [generator.version for generator in generators] == [6, 6, 6]
    assert all(generator.loaded["w"].tolist() == [1, 1] for generator in generators)
    assert len(sample(pool, policy_version=6)) == 9


def test_all_workers_are_passed_the_very_same_answer_of_the_learner() -> None:
    workers = handles([ScriptedGenerator(), ScriptedGenerator()])
    source = Weights(UPDATE)
    pool_of(*workers).update_weights(source)
    assert source.asked == 1
    sent = [arguments[0] for worker in workers for method, arguments in worker.calls if method == "apply_update"]
    assert len(sent) == 2
    assert all(one is source.made[0].update for one in sent)


def test_a_bucket_is_asked_for_when_every_worker_has_the_one_before() -> None:
    first, second = (pack({name: torch.ones(2)}, 3, bucket=i, buckets=2) for i, name in enumerate("ab"))
    workers = handles([ScriptedGenerator(), ScriptedGenerator()])
    held: list[list[int]] = []

    class Watched(Weights):
        def buckets(self) -> Any:
            for bucket in super().buckets():
                held.append([worker.count("apply_update") for worker in workers])
                yield bucket

    assert pool_of(*workers).update_weights(Watched(first, second)) == 16
    assert held == [[0, 0], [1, 1]]
    assert [worker.worker.version for worker in workers] == [3, 3]


@pytest.mark.parametrize(
    ("ack", "error", "message"),
    [
        (Ack(6, "other"), ChecksumError, "rollout-9 received weights with checksum other"),
        (Ack(5, UPDATE.checksum), StaleWeightsError, "rollout-9 is at version 5 after update 6"),
        (Ack(6, UPDATE.checksum, "lora_B", 0.013), WeightMismatchError, r"rollout-9 .*lora_B differs by 0\.013"),
    ],
)
def test_a_worker_that_acknowledges_something_else_is_named(ack: Ack, error: type[Exception], message: str) -> None:
    pool = pool_of(*handles([ScriptedGenerator()]), AnsweringHandle("rollout-9", ack))
    with pytest.raises(error, match=message):
        pool.update_weights(Weights(UPDATE))


def test_an_update_that_was_damaged_on_the_way_names_the_worker_that_found_it() -> None:
    damaged = replace(UPDATE, tensors={"w": np.array([1.0, 1.01], np.float32)})
    with pytest.raises(ChecksumError, match="rollout worker rollout-0: weight update 6 has checksum"):
        pool_of(*handles([ScriptedGenerator()])).update_weights(Weights(damaged))


def test_the_canary_gives_the_largest_difference_and_names_a_worker_beyond_the_tolerance() -> None:
    pool = pool_of(*handles([ScriptedGenerator(bias=-1.0), ScriptedGenerator(bias=-1.25)]))
    assert pool.verify_canary(canary_of(-1.0, tolerance=0.5)) == 0.25
    with pytest.raises(CanaryMismatchError, match=r"rollout-1 differs from the learner by 0\.25 nats"):
        pool.verify_canary(canary_of(-1.0, tolerance=0.1))


def test_a_version_in_shared_memory_is_adopted_by_every_worker() -> None:
    generators = [ScriptedGenerator() for _ in range(2)]
    pool_of(*handles(generators)).adopt_version(4)
    assert [generator.version for generator in generators] == [4, 4]


def test_a_pool_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        pool_of()
