from collections.abc import Sequence

import numpy as np
import pytest
import torch

from rollout.generation import repeat_prompts
from rollout.pool import RolloutPool, RolloutTimeoutError, WorkerHandle, shares
from rollout.types import Completion
from rollout.weight_sync import Ack, CanaryMismatchError, ChecksumError, StaleWeightsError, WeightUpdate, pack
from rollout.worker import RolloutWorker
from tests.rollout.fakes import AnsweringHandle, HangingHandle, InProcessHandle, ScriptedGenerator, prompt_of

UPDATE = pack({"w": torch.ones(2)}, version=6)


def handles(generators: Sequence[ScriptedGenerator]) -> list[InProcessHandle]:
    return [InProcessHandle(f"rollout-{i}", RolloutWorker(generator)) for i, generator in enumerate(generators)]


def pool_of(*workers: WorkerHandle) -> RolloutPool:
    return RolloutPool(workers, timeout_seconds=60)


def sample(pool: RolloutPool, *, policy_version: int = 0) -> list[Completion]:
    prompts, indices = repeat_prompts([prompt_of("a"), prompt_of("b"), prompt_of("c")], 3)
    return pool.generate(prompts, indices, seed=2, step=4, policy_version=policy_version)


@pytest.mark.parametrize(
    ("count", "workers", "expected"),
    [
        (5, 3, [(0, 2), (2, 4), (4, 5)]),
        (6, 3, [(0, 2), (2, 4), (4, 6)]),
        (7, 2, [(0, 4), (4, 7)]),
        (2, 4, [(0, 1), (1, 2)]),
        (0, 2, []),
    ],
)
def test_shares_are_contiguous_and_equal_up_to_one_job(
    count: int, workers: int, expected: list[tuple[int, int]]
) -> None:
    assert [(part.start, part.stop) for part in shares(count, workers)] == expected


@pytest.mark.parametrize("workers", [1, 2, 4, 20])
def test_completions_come_in_the_order_of_the_jobs_with_any_number_of_workers(workers: int) -> None:
    completions = sample(pool_of(*handles([ScriptedGenerator() for _ in range(workers)])))
    assert [(c.prompt_id, c.response_index) for c in completions] == [(p, i) for p in "abc" for i in range(3)]
    assert all(c.token_ids[1] == 4 and c.logprobs[1] == -2 for c in completions)


def test_jobs_are_spread_over_all_workers_and_idle_ones_are_not_called() -> None:
    generators = [ScriptedGenerator() for _ in range(2)]
    sample(pool_of(*handles(generators)))
    assert [generator.call_sizes for generator in generators] == [[5], [4]]
    generators = [ScriptedGenerator() for _ in range(10)]
    sample(pool_of(*handles(generators)))
    assert [generator.call_sizes for generator in generators] == [[1]] * 9 + [[]]


def test_a_worker_that_missed_an_update_is_found_before_it_samples() -> None:
    with pytest.raises(StaleWeightsError, match="version 0, asked was 1"):
        sample(pool_of(*handles([ScriptedGenerator(version=1), ScriptedGenerator(version=0)])), policy_version=1)


def test_a_worker_that_hangs_is_named_with_the_call_and_the_limit() -> None:
    pool = pool_of(*handles([ScriptedGenerator()]), HangingHandle("rollout-7"))
    with pytest.raises(RolloutTimeoutError, match=r"rollout-7 did not finish 'generate' within 60 s"):
        sample(pool)
    with pytest.raises(RolloutTimeoutError, match=r"rollout-7 did not finish 'apply_update'"):
        pool.update_weights(UPDATE)


def test_all_workers_wait_against_one_deadline() -> None:
    workers = handles([ScriptedGenerator() for _ in range(3)])
    sample(pool_of(*workers))
    granted = [worker.calls[0].granted_seconds[0] for worker in workers]
    assert 60 >= granted[0] >= granted[1] >= granted[2] > 0


def test_an_update_brings_every_worker_to_its_version() -> None:
    generators = [ScriptedGenerator() for _ in range(3)]
    pool = pool_of(*handles(generators))
    pool.update_weights(UPDATE)
    assert [generator.version for generator in generators] == [6, 6, 6]
    assert all(generator.loaded["w"].tolist() == [1, 1] for generator in generators)
    assert len(sample(pool, policy_version=6)) == 9


def test_an_update_is_published_once_for_all_workers() -> None:
    published: list[WeightUpdate] = []

    def publish(update: WeightUpdate) -> WeightUpdate:
        published.append(update)
        return update

    workers = handles([ScriptedGenerator(), ScriptedGenerator()])
    RolloutPool(workers, timeout_seconds=60, publish=publish).update_weights(UPDATE)
    assert published == [UPDATE]


@pytest.mark.parametrize(
    ("ack", "error"), [(Ack(6, "other"), ChecksumError), (Ack(5, UPDATE.checksum), StaleWeightsError)]
)
def test_a_worker_that_acknowledges_something_else_is_named(ack: Ack, error: type[Exception]) -> None:
    pool = pool_of(*handles([ScriptedGenerator()]), AnsweringHandle("rollout-9", ack))
    with pytest.raises(error, match="rollout-9"):
        pool.update_weights(UPDATE)


def test_the_canary_gives_the_largest_difference_and_names_a_worker_beyond_the_tolerance() -> None:
    pool = pool_of(*handles([ScriptedGenerator(bias=-1.0), ScriptedGenerator(bias=-1.25)]))
    prompts, responses = [np.array([1])], [np.array([2, 3])]
    expected = [np.array([-1.0, -1.0], dtype=np.float32)]
    assert pool.verify_canary(prompts, responses, expected, tolerance=0.5) == 0.25
    with pytest.raises(CanaryMismatchError, match=r"rollout-1 differs from the learner by 0\.25 nats"):
        pool.verify_canary(prompts, responses, expected, tolerance=0.1)


def test_a_pool_without_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        pool_of()
