from collections.abc import Callable

import pytest
import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import LoraTuning
from policies.scalar_head import ScalarHead
from policies.sequences import SequenceBatch
from policies.value import ValueModel
from tests.fixtures_models import ARCHITECTURES
from tests.tiny_models import RAGGED, ragged_batch, randomize


def critic_on(backbone: Backbone) -> ValueModel:
    backbone.adapters.add("critic", LoraTuning(rank=2), seed=0)
    randomize(backbone.adapters, "critic", seed=0)
    return ValueModel(backbone, adapter="critic", head=ScalarHead(backbone.hidden_size, seed=0))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_value_reads_everything_before_its_token_and_nothing_after(
    architecture: str, backbone_of: Callable[[str], Backbone], batch: SequenceBatch
):
    critic = critic_on(backbone_of(architecture))

    values = critic.values(batch)

    for row, (prompt, response) in enumerate(RAGGED):
        for t in range(len(response)):
            before = torch.tensor([prompt + response[:t]])
            with critic.backbone.adapters.use("critic"):
                state = critic.backbone.hidden_states(before, None)[0, -1]
            assert values[row, t].item() == pytest.approx(critic.head(state).item(), abs=1e-4)
    assert torch.all(values[~batch.response_mask] == 0)
    assert values.dtype == torch.float32


def test_values_do_not_change_with_padding_and_order(backbone: Backbone):
    critic = critic_on(backbone)

    together = critic.values(ragged_batch((2, 0, 1), pad_id=7))

    for row, index in enumerate((2, 0, 1)):
        alone = critic.values(ragged_batch((index,)))[0]
        assert torch.allclose(together[row, : len(alone)], alone, atol=1e-5)


def test_a_zero_head_starts_at_zero_and_learns_first_through_the_head(backbone: Backbone, batch: SequenceBatch):
    backbone.adapters.add("critic", LoraTuning(rank=2), seed=0)
    critic = ValueModel(backbone, adapter="critic", head=ScalarHead(backbone.hidden_size))
    parameters = dict(critic.trainable())

    values = critic.values(batch)
    ((values - 1) ** 2 * batch.response_mask).sum().backward()

    assert torch.equal(values, torch.zeros_like(values))
    gradient = parameters["head.weight"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_gradients_of_the_critic_reach_its_adapter_and_head_only(backbone: Backbone, batch: SequenceBatch):
    critic = critic_on(backbone)
    backbone.adapters.copy("critic", "policy")
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    policy.trainable()
    own = {id(parameter) for _, parameter in critic.trainable()}

    critic.values(batch).sum().backward()

    everything = [*backbone.model.parameters(), *critic.head.parameters()]
    assert all((parameter.grad is not None) == (id(parameter) in own) for parameter in everything)


def test_a_critic_from_a_reward_model_starts_at_normalised_scores_and_leaves_it_alone(
    backbone: Backbone, batch: SequenceBatch
):
    backbone.adapters.add("reward", LoraTuning(rank=2), seed=0)
    randomize(backbone.adapters, "reward", seed=0)
    head = ScalarHead(backbone.hidden_size, seed=3)
    raw = ValueModel(backbone, adapter="reward", head=head).values(batch)

    critic = ValueModel.from_reward_adapter(backbone, source="reward", adapter="critic", head=head, mean=0.3, std=2.0)
    assert torch.allclose(critic.values(batch)[batch.response_mask], (raw[batch.response_mask] - 0.3) / 2.0, atol=1e-5)

    with torch.no_grad():
        for _, parameter in critic.trainable():
            parameter.add_(0.1)
    assert torch.equal(ValueModel(backbone, adapter="reward", head=head).values(batch), raw)


@pytest.mark.parametrize("adapter", ["critic", None])
def test_a_state_that_is_loaded_back_restores_the_critic(adapter: str | None, backbone: Backbone, batch: SequenceBatch):
    critic = (
        critic_on(backbone)
        if adapter
        else ValueModel(backbone, adapter=None, head=ScalarHead(backbone.hidden_size, seed=0))
    )
    names = {name for name, _ in critic.trainable()}
    before = critic.values(batch).detach()
    saved = {name: tensor.clone() for name, tensor in critic.state().items()}
    with torch.no_grad():
        for tensor in critic.state().values():
            tensor.add_(0.1)
    assert not torch.allclose(critic.values(batch), before, atol=1e-2)

    critic.load_state(saved)

    assert saved.keys() == names
    assert torch.equal(critic.values(batch), before)


def test_a_critic_with_weights_of_its_own_leaves_the_unused_output_layer_out(backbone: Backbone):
    critic = ValueModel(backbone, adapter=None, head=ScalarHead(backbone.hidden_size, seed=0))

    names = {name for name, _ in critic.trainable()}

    assert not any("lm_head" in name for name in names)
    assert not backbone.model.lm_head.weight.requires_grad
    assert {"head.weight", "head.bias"} <= names


def test_a_state_without_the_head_is_refused(backbone: Backbone):
    critic = critic_on(backbone)
    state = {name: tensor for name, tensor in critic.state().items() if not name.startswith("head.")}

    with pytest.raises(ValueError, match=r"value head: .*missing \['bias', 'weight'\]"):
        critic.load_state(state)
