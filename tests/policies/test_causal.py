from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from policies import causal
from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import LoraTuning
from policies.logprobs import response_states
from policies.sequences import SequenceBatch, evaluate_in_micro_batches, pad_texts
from tests.fixtures_models import ARCHITECTURES
from tests.tiny_models import RAGGED, ragged_batch, randomize


def full_logits_logprobs(backbone: Backbone, temperature: float) -> list[list[float]]:
    """The obvious slow way: one sequence at a time, all logits, explicit positions."""
    results = []
    for prompt, response in RAGGED:
        logits = backbone.model(input_ids=torch.tensor([prompt + response])).logits[0].double()
        table = (logits / temperature).log_softmax(-1)
        results.append([float(table[len(prompt) + t - 1, token]) for t, token in enumerate(response)])
    return results


def tuned(backbone: Backbone, temperature: float = 1.0) -> CausalPolicy:
    backbone.adapters.add("policy", LoraTuning(rank=2, alpha=2), seed=0)
    randomize(backbone.adapters, "policy", seed=0)
    return CausalPolicy(backbone, adapter="policy", temperature=temperature)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_those_of_full_logits(
    architecture: str, temperature: float, backbone_of: Callable[[str], Backbone], batch: SequenceBatch
):
    policy = tuned(backbone_of(architecture), temperature)
    with policy.backbone.adapters.use("policy"), torch.no_grad():
        expected = full_logits_logprobs(policy.backbone, temperature)

    received = policy.logprobs(batch).logprobs

    for row, values in enumerate(expected):
        assert received[row, : len(values)].tolist() == pytest.approx(values, abs=1e-4)
        assert torch.all(received[row, len(values) :] == 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_do_not_change_with_padding_order_or_micro_batch_size(
    architecture: str, backbone_of: Callable[[str], Backbone]
):
    policy = tuned(backbone_of(architecture), 0.7)
    prompts = [np.array(prompt) for prompt, _ in RAGGED]
    responses = [np.array(response) for _, response in RAGGED]

    def evaluate(order: list[int], token_budget: int, pad_id: int) -> list[np.ndarray]:
        results = evaluate_in_micro_batches(
            lambda batch: policy.logprobs(batch).logprobs,
            [prompts[i] for i in order],
            [responses[i] for i in order],
            token_budget=token_budget,
            pad_id=pad_id,
            device="cpu",
        )
        return [results[order.index(i)] for i in range(len(order))]

    expected = evaluate([0, 1, 2], 1, 0)
    for order, token_budget, pad_id in (([2, 0, 1], 100, 0), ([1, 2, 0], 10, 0), ([0, 1, 2], 100, 250)):
        for received, reference in zip(evaluate(order, token_budget, pad_id), expected, strict=True):
            assert np.allclose(received, reference, atol=1e-5)


def test_the_adapter_is_the_policy_and_no_adapter_is_the_base(backbone: Backbone, batch: SequenceBatch):
    base = CausalPolicy(backbone, adapter=None, temperature=1.0)
    before = base.logprobs(batch).logprobs
    policy = tuned(backbone)

    assert torch.equal(base.logprobs(batch).logprobs, before)
    assert not torch.allclose(policy.logprobs(batch).logprobs, before, atol=1e-2)


def gradients(policy: CausalPolicy, batches: list[SequenceBatch]) -> dict[str, Tensor]:
    parameters = policy.trainable()
    for batch in batches:
        policy.logprobs(batch).logprobs.sum().backward()
    collected = {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}
    for _, parameter in parameters:
        parameter.grad = None
    return collected


def relative_error(received: Tensor, expected: Tensor) -> float:
    return float((received - expected).abs().max() / expected.abs().max())


def test_gradients_do_not_depend_on_how_sequences_fall_into_micro_batches(backbone: Backbone):
    policy = tuned(backbone)

    whole = gradients(policy, [ragged_batch()])
    split = gradients(policy, [ragged_batch((2,)), ragged_batch((1, 0))])

    assert whole.keys() == split.keys() == policy.weights().keys()
    assert all(relative_error(split[name], whole[name]) < 1e-5 for name in whole)


def test_gradients_are_the_same_when_logits_are_recomputed_in_backward(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
):
    # An adapter on the output layer, too: its recomputation happens after the policy has switched itself off again.
    backbone.adapters.add("policy", LoraTuning(rank=2, alpha=2, target_modules=("q_proj", "lm_head")), seed=0)
    randomize(backbone.adapters, "policy", seed=0)
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    kept = gradients(policy, [ragged_batch()])

    monkeypatch.setattr(causal, "chunk_tokens_for", lambda _: 2)
    recomputed = gradients(policy, [ragged_batch()])

    assert any("lm_head" in name for name in kept)
    assert all(relative_error(recomputed[name], kept[name]) < 1e-5 for name in kept)


def test_no_gradient_reaches_the_base_or_another_adapter(backbone: Backbone, batch: SequenceBatch):
    policy = tuned(backbone)
    backbone.adapters.copy("policy", "reference")
    parameters = policy.trainable()

    policy.logprobs(batch, with_entropy=True).logprobs.sum().backward()

    own = {id(parameter) for _, parameter in parameters}
    assert all((parameter.grad is not None) == (id(parameter) in own) for parameter in backbone.model.parameters())


def test_entropy_lies_between_zero_and_that_of_the_uniform_distribution(backbone: Backbone, batch: SequenceBatch):
    entropy = tuned(backbone).logprobs(batch, with_entropy=True).entropy

    assert entropy is not None
    chosen = entropy[batch.response_mask]
    assert torch.all((chosen > 0) & (chosen < np.log(300)))
    assert torch.all(entropy[~batch.response_mask] == 0)


def test_text_is_scored_at_temperature_one_whatever_the_policys_own(backbone: Backbone):
    cold = tuned(backbone, temperature=0.5)
    text = np.array([1, 8, 9, 10])
    with backbone.adapters.use("policy"), torch.no_grad():
        table = backbone.model(input_ids=torch.tensor(text[None])).logits[0].log_softmax(-1)

    received = cold.text_nll(pad_texts([text], pad_id=0))

    expected = [-float(table[t, text[t + 1]]) for t in range(3)]
    assert received[0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("adapter", ["policy", None])
def test_weights_that_are_loaded_back_restore_the_policy(adapter: str | None, backbone: Backbone, batch: SequenceBatch):
    policy = tuned(backbone) if adapter else CausalPolicy(backbone, adapter=None, temperature=1.0)
    before = policy.logprobs(batch).logprobs
    saved = {name: tensor.clone() for name, tensor in policy.weights().items()}
    with torch.no_grad():
        for tensor in policy.weights().values():
            tensor.add_(0.1)
    assert not torch.allclose(policy.logprobs(batch).logprobs, before, atol=1e-2)

    policy.load_weights(saved)

    assert torch.equal(policy.logprobs(batch).logprobs, before)


def test_the_settings_are_what_decides_a_logprob_and_stands_in_no_weight(
    backbone_of: Callable[[str], Backbone],
) -> None:
    backbone = backbone_of("llama")
    assert CausalPolicy(backbone, adapter=None, temperature=0.7).settings() == {"temperature": 0.7}
    backbone.adapters.add("policy", LoraTuning(rank=4, alpha=6, target_modules=("q_proj",)), seed=0)
    backbone.adapters.add("critic", LoraTuning(rank=2, alpha=8), seed=0)
    settings = CausalPolicy(backbone, adapter="policy", temperature=1.0).settings()
    scalings = {f"scaling of model.layers.{layer}.self_attn.q_proj": 1.5 for layer in (0, 1)}
    assert settings == {"temperature": 1.0} | scalings
    # As they are, not as they were configured.
    for _, layer in backbone.adapters._layers.of("policy"):
        cast(Any, layer).scaling["policy"] = 1.0
    assert set(CausalPolicy(backbone, adapter="policy", temperature=1.0).settings().values()) == {1.0}


@pytest.mark.parametrize("attention", ["sdpa", "eager"], ids=["packed", "padded"])
def test_the_end_of_the_decoder_computes_states_before_responses_alone(
    backbone: Backbone, batch: SequenceBatch, attention: str
):
    backbone.model.set_attn_implementation(attention)
    expected = response_states(backbone.row_states(batch.input_ids, batch.attention_mask), batch)
    seen: list[int] = []
    cast(Any, backbone.model.base_model).layers[-1].mlp.gate_proj.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].shape[0])
    )
    received = backbone.response_states(batch)
    assert backbone.packs_rows is (attention == "sdpa")
    assert seen == [7]
    assert torch.allclose(received[batch.response_mask], expected[batch.response_mask], atol=1e-5)
