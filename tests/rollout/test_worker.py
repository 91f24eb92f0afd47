from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from rollout.types import PerToken, TokenIds
from rollout.weight_sync import CanaryMismatchError, ChecksumError, StaleWeightsError, pack
from rollout.worker import RolloutWorker
from tests.rollout.fakes import ScriptedGenerator, prompt_of


def test_the_generator_answers_when_the_version_is_the_expected_one() -> None:
    worker = RolloutWorker(ScriptedGenerator(version=2))
    (completion,) = worker.generate([prompt_of("a")], [5], seed=1, step=9, expected_version=2)
    assert completion.prompt_id == "a"
    assert completion.token_ids.tolist() == [5, 9]
    assert completion.policy_version == 2


@pytest.mark.parametrize("expected_version", [1, 3])
def test_a_worker_of_another_version_refuses_to_sample(expected_version: int) -> None:
    generator = ScriptedGenerator(version=2)
    with pytest.raises(StaleWeightsError, match=f"holds policy version 2, asked was {expected_version}"):
        RolloutWorker(generator).generate([prompt_of("a")], [0], seed=0, step=0, expected_version=expected_version)
    assert generator.call_sizes == []


def test_an_update_reaches_the_generator_and_is_acknowledged_with_its_checksum() -> None:
    generator = ScriptedGenerator()
    update = pack({"w": torch.tensor([1.0, 2.0])}, version=3)
    worker = RolloutWorker(generator)
    ack = worker.apply_update(update)
    assert (ack.version, ack.checksum) == (3, update.checksum)
    assert worker.version == 3
    assert generator.loaded["w"].tolist() == [1.0, 2.0]
    assert worker.apply_update(update) == ack


def test_a_damaged_update_leaves_weights_and_version_as_they_were() -> None:
    generator = ScriptedGenerator(version=1)
    update = replace(pack({"w": torch.zeros(2)}, version=2), tensors={"w": np.ones(2, dtype=np.float32)})
    with pytest.raises(ChecksumError):
        RolloutWorker(generator).apply_update(update)
    assert generator.version == 1
    assert generator.loaded == {}


def test_an_update_older_than_the_weights_is_refused() -> None:
    with pytest.raises(StaleWeightsError, match="weight update 4 is older than the worker's version 5"):
        RolloutWorker(ScriptedGenerator(version=5)).apply_update(pack({"w": torch.zeros(1)}, version=4))


def test_weights_that_changed_in_place_only_bring_a_version() -> None:
    generator = ScriptedGenerator(version=1)
    worker = RolloutWorker(generator)
    worker.adopt_version(2)
    assert worker.version == 2
    assert generator.loaded == {}


def test_the_canary_is_the_generators_log_probs_of_the_given_responses() -> None:
    worker = RolloutWorker(ScriptedGenerator(bias=-0.25))
    (logprobs,) = worker.canary([np.array([1, 2])], [np.array([3, 4, 5])])
    assert logprobs.tolist() == [-0.25, -0.25, -0.25]


class CountingGenerator(ScriptedGenerator):
    """Counts its plain forward passes, which give -1 for every token; its samples say -1 and -seed."""

    def __init__(self) -> None:
        super().__init__(bias=-1.0)
        self.passes: list[int] = []

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        self.passes.append(len(responses))
        return super().logprobs(prompts, responses)


def test_the_first_samples_of_every_version_are_scored_again() -> None:
    generator = CountingGenerator()
    worker = RolloutWorker(generator, decode_tolerance=0.1)
    jobs = [prompt_of(letter) for letter in "abc"], [0, 0, 0]
    for version in (0, 0, 1):
        worker.adopt_version(version)
        worker.generate(*jobs, seed=1, step=0, expected_version=version)
    assert generator.passes == [2, 2]


def test_an_engine_that_reports_other_log_probs_than_its_weights_give_is_found() -> None:
    worker = RolloutWorker(CountingGenerator(), decode_tolerance=0.5)
    with pytest.raises(CanaryMismatchError, match=r"differ by 1 nats from its own forward pass at version 0, .* 0\.5"):
        worker.generate([prompt_of("a")], [0], seed=2, step=0, expected_version=0)
