from dataclasses import replace

import numpy as np
import pytest
import torch

from rollout.weight_sync import ChecksumError, StaleWeightsError, pack
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
