# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false
"""Layers computed again in the backward pass: the same gradients, whatever was switched in between."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from policies.activation_checkpointing import checkpointed_layers
from policies.backbone import Backbone
from policies.config import LoraTuning
from policies.sequences import SequenceBatch
from tests.fixtures_models import ARCHITECTURES
from tests.tiny_models import randomize


def with_two_adapters(backbone: Backbone) -> Backbone:
    for seed, name in enumerate(("policy", "critic")):
        backbone.adapters.add(name, LoraTuning(rank=2), seed=seed)
        randomize(backbone.adapters, name, seed=seed)
        backbone.adapters.trainable(name)
    return backbone


def gradients_of_both(backbone: Backbone, batch: SequenceBatch) -> dict[str, Tensor]:
    """Both adapters' forward passes, then both backward passes, with all adapters off by then."""
    losses = []
    for name in ("policy", "critic"):
        with backbone.adapters.use(name):
            states = backbone.row_states(batch.input_ids, batch.attention_mask)[batch.attention_mask]
        losses.append((states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum())
    for loss in losses:
        loss.backward()
    parameters = [entry for name in ("policy", "critic") for entry in backbone.adapters.parameters(name)]
    gradients = {f"{index}": parameter.grad for index, (_, parameter) in enumerate(parameters)}
    for _, parameter in parameters:
        parameter.grad = None
    return {name: gradient for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("attention", [None, "eager"], ids=["own attention", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_are_bitwise_those_of_kept_activations(
    architecture: str, attention: str | None, backbone_of: Callable[[str], Backbone], batch: SequenceBatch
):
    backbone = with_two_adapters(backbone_of(architecture))
    if attention is not None:
        backbone.model.set_attn_implementation(attention)
    kept = gradients_of_both(backbone, batch)
    backbone.checkpoint_activations()
    again = gradients_of_both(backbone, batch)
    assert len(kept) > 10
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert max(float(gradient.abs().max()) for gradient in kept.values()) > 0.1


@pytest.mark.parametrize("order", [("policy", "critic"), ("critic", "policy")], ids=["policy first", "critic first"])
def test_each_adapter_is_computed_again_as_itself_and_nothing_else_gets_a_gradient(
    backbone: Backbone, batch: SequenceBatch, order: tuple[str, str]
):
    backbone = with_two_adapters(backbone)
    backbone.adapters.add("reward", LoraTuning(rank=2), seed=2)
    randomize(backbone.adapters, "reward", seed=2)

    def loss_of(name: str) -> Tensor:
        with backbone.adapters.use(name):
            states = backbone.row_states(batch.input_ids, batch.attention_mask)[batch.attention_mask]
        return (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum()

    def gradients_of(name: str) -> list[Tensor]:
        parameters = [parameter for _, parameter in backbone.adapters.parameters(name)]
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        return gradients

    # By itself, from activations that are kept: nothing is switched between forward and backward.
    alone: dict[str, list[Tensor]] = {}
    for name in order:
        loss_of(name).backward()
        alone[name] = gradients_of(name)

    backbone.checkpoint_activations()
    losses = {name: loss_of(name) for name in ("policy", "critic")}
    with torch.no_grad():
        loss_of("reward")
    with backbone.adapters.use("reward"):  # What is on during the backward pass must not matter.
        for name in order:
            losses[name].backward()
    trained = {id(parameter) for name in order for _, parameter in backbone.adapters.parameters(name)}
    assert all(parameter.grad is None for parameter in backbone.model.parameters() if id(parameter) not in trained)
    for name in order:
        assert max(float(gradient.abs().max()) for gradient in alone[name]) > 0.1
        assert all(torch.equal(a, b) for a, b in zip(gradients_of(name), alone[name], strict=True))


def test_each_layer_runs_once_more_with_gradients_and_only_then(backbone: Backbone, batch: SequenceBatch):
    backbone = with_two_adapters(backbone)
    calls: list[nn.Module] = []
    for layer in checkpointed_layers(backbone.model):
        layer.mlp.register_forward_pre_hook(lambda module, _: calls.append(module))
    backbone.checkpoint_activations()
    with torch.no_grad():
        backbone.row_states(batch.input_ids, batch.attention_mask)
    assert len(calls) == 2
    gradients_of_both(backbone, batch)
    assert len(calls) == 2 + 2 * 2 * 2


def test_decoding_keeps_its_cache_and_everything_stays_in_eval_mode(backbone: Backbone, batch: SequenceBatch):
    backbone.checkpoint_activations()
    backbone.row_states(batch.input_ids, batch.attention_mask)
    assert not any(module.training for module in backbone.model.modules())
    output = backbone.model(input_ids=batch.input_ids, use_cache=True)
    assert output.past_key_values.get_seq_length() == batch.input_ids.shape[1]


def test_an_architecture_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="activation_checkpointing=true: Linear has no layers"):
        checkpointed_layers(nn.Linear(2, 2))
