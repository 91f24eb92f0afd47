# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
"""The end of the last layer, computed only where its output is read."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from policies.final_layer import computed_only_at, final_parts, follow_readers
from tests.tiny_models import build_model

INPUT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
READ = torch.tensor([3, 6])
"""Places among the eight tokens: the last of the first row, the third of the second."""


def states_and_gradients(body):
    body.zero_grad(set_to_none=True)
    with computed_only_at(READ):
        hidden = body(input_ids=INPUT, use_cache=False).last_hidden_state
    states = hidden.flatten(0, 1)[READ]
    (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum().backward()
    return states, {name: parameter.grad for name, parameter in body.named_parameters()}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gpt_neox", "gemma2"])
def test_states_that_are_read_and_their_gradients_stay_the_same(architecture):
    body = build_model(architecture, 300).base_model
    whole, expected = states_and_gradients(body)

    parts = final_parts(body)
    follow_readers(parts)
    states, received = states_and_gradients(body)

    assert parts
    torch.testing.assert_close(states, whole, rtol=1e-5, atol=1e-5)
    for name, gradient in expected.items():
        assert (gradient is None) == (received[name] is None)
        if gradient is not None:
            scale = max(1.0, gradient.abs().max().item())
            torch.testing.assert_close(received[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


def test_the_parts_read_those_tokens_alone_and_everything_again_afterwards():
    body = build_model("llama", 300).base_model
    last = body.layers[-1]
    parts = final_parts(body)
    assert parts == [last.self_attn.q_proj, last.self_attn.o_proj, last.mlp]
    follow_readers(parts)
    follow_readers(parts)
    seen = []
    for module in (last.self_attn.k_proj, last.self_attn.q_proj, last.self_attn.o_proj, last.mlp.gate_proj):
        # Behind the hook that selects tokens.
        module.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))

    with computed_only_at(READ):
        body(input_ids=INPUT, use_cache=False)
    assert sorted(seen) == [(2, 4, 32), (2, 32), (2, 32), (2, 32)]
    seen.clear()
    body(input_ids=INPUT, use_cache=False)
    assert seen == [(2, 4, 32)] * 4


def test_a_pass_in_another_thread_computes_everything():
    body = build_model("llama", 300).base_model
    follow_readers(final_parts(body))
    expected = body(input_ids=INPUT, use_cache=False).last_hidden_state
    with ThreadPoolExecutor(1) as executor, computed_only_at(READ):
        received = executor.submit(lambda: body(input_ids=INPUT, use_cache=False).last_hidden_state).result()
        here = body(input_ids=INPUT, use_cache=False).last_hidden_state
    assert torch.equal(received, expected)
    assert not torch.allclose(here, expected)


class Layers(nn.Module):
    """A body whose last layer has an MLP of some kind."""

    def __init__(self, mlp):
        super().__init__()
        layer = nn.Module()
        layer.mlp = mlp
        self.layers = nn.ModuleList([layer])


class WithResidual(nn.Module):
    def forward(self, states, residual):
        return states + residual


def test_mlps_that_route_or_take_more_than_states_are_left_alone():
    router = nn.Sequential()
    router.add_module("gate", nn.Linear(4, 2))
    assert len(final_parts(Layers(nn.Identity()))) == 1
    assert final_parts(Layers(router)) == []
    assert final_parts(Layers(WithResidual())) == []
    assert final_parts(nn.Linear(2, 2)) == []
