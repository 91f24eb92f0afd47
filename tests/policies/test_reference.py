from collections.abc import Sequence

import numpy as np
import pytest
import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import FullTuning, LoraTuning
from policies.reference import ReferencePolicy
from tests.tiny_models import RAGGED, ragged_batch, randomize

PROMPTS = [np.array(prompt) for prompt, _ in RAGGED]
RESPONSES = [np.array(response) for _, response in RAGGED]


def policy_logprobs(policy: CausalPolicy) -> list[list[float]]:
    batch = ragged_batch()
    with torch.no_grad():
        rows = policy.logprobs(batch).logprobs
    return [row[mask].tolist() for row, mask in zip(rows, batch.response_mask, strict=True)]


def assert_close(received: Sequence[np.ndarray], expected: list[list[float]]) -> None:
    for values, reference in zip(received, expected, strict=True):
        assert values.dtype == np.float32
        assert values.tolist() == pytest.approx(reference, abs=1e-5)


def change(policy: CausalPolicy) -> None:
    with torch.no_grad():
        for _, parameter in policy.trainable():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))


def test_lora_on_a_full_model_is_anchored_by_the_base_with_adapters_off(backbone: Backbone):
    backbone.adapters.add("policy", LoraTuning(), seed=0)
    policy = CausalPolicy(backbone, adapter="policy", temperature=0.7)
    start = policy_logprobs(policy)
    reference = ReferencePolicy.at_start(backbone, LoraTuning(), temperature=0.7)

    change(policy)

    assert reference.backbone is backbone
    assert reference.adapter is None
    assert_close(reference.logprobs(PROMPTS, RESPONSES, 8), start)
    with pytest.raises(AssertionError):
        assert_close(reference.logprobs(PROMPTS, RESPONSES, 8), policy_logprobs(policy))


def test_a_policy_that_came_with_an_adapter_is_anchored_by_its_frozen_copy(backbone: Backbone):
    backbone.adapters.add("policy", LoraTuning(), seed=0)
    randomize(backbone.adapters, "policy", seed=0)
    backbone.adapters.copy("policy", "reference")
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    start = policy_logprobs(policy)
    reference = ReferencePolicy.at_start(backbone, LoraTuning(), temperature=1.0)

    change(policy)

    assert reference.adapter == "reference"
    assert_close(reference.logprobs(PROMPTS, RESPONSES, 100), start)


def test_full_tuning_is_anchored_by_a_second_copy(backbone: Backbone):
    policy = CausalPolicy(backbone, adapter=None, temperature=1.0)
    start = policy_logprobs(policy)
    reference = ReferencePolicy.at_start(backbone, FullTuning(), temperature=1.0)

    change(policy)

    assert reference.backbone is not backbone
    assert_close(reference.logprobs(PROMPTS, RESPONSES, 8), start)
    assert not any(parameter.requires_grad for parameter in reference.backbone.model.parameters())
