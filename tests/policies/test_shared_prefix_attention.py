# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false
"""A packed row gives each sequence the hidden states and gradients that it has alone."""

import numpy as np
import pytest
import torch

from policies.attention import UnsupportedAttentionError
from policies.final_layer import computed_only_at, final_parts, follow_readers
from policies.rotary_attention import use_fast_attention
from policies.shared_prefix import pack_groups
from policies.shared_prefix_attention import (
    last_token_products,
    shared_prefix_attention,
    shared_prefix_products,
    supports_shared_prefix,
)
from tests.tiny_models import build_model

RNG = np.random.default_rng(0)


def group(prefix, *lengths):
    start = RNG.integers(3, 300, prefix)
    return [np.concatenate([start, RNG.integers(3, 300, length)]) for length in lengths]


GROUPS = (group(5, 4, 7, 2), group(3, 6, 1), group(0, 4, 9), group(8, 1))
EVEN = (group(4, 3, 3), group(4, 3, 3))
LONG = (group(33, 20, 5), group(20, 37, 3))  # Brought to round sizes with tokens of padding.
WITHOUT_PREFIX = ([np.array([7, 8, 9]), np.array([4, 5])],)
SUPPORTED = ("llama", "gpt2", "qwen3", "gpt_neox")


def packed_states(body, groups):
    return packed_states_of(body, pack_groups(groups))


def packed_states_of(body, batch):
    with shared_prefix_attention(body):
        layout = {"position_ids": batch.position_ids, "packing": batch}
        hidden = body(input_ids=batch.input_ids, use_cache=False, **layout).last_hidden_state
    return hidden[0, batch.last_index]


def states_alone(body, groups):
    rows = (torch.tensor(sequence)[None] for sequences in groups for sequence in sequences)
    return torch.cat([body(input_ids=row, use_cache=False).last_hidden_state[:, -1] for row in rows])


def gradients(body, states):
    body.zero_grad(set_to_none=True)
    weights = torch.linspace(-1, 1, states.numel()).reshape(states.shape)
    (states * weights).sum().backward()
    return {name: parameter.grad for name, parameter in body.named_parameters() if parameter.grad is not None}


def test_unlike_lengths_are_brought_to_round_sizes():
    batch = pack_groups(LONG)
    # 53 tokens of prefixes become 54, 65 of rests 68; the widths are 33 -> 34 and 37 -> 38.
    assert batch.parts == (54, 68)
    assert batch.input_ids.shape == (1, 122)
    assert (batch.prefixes.width, batch.rests.width) == (34, 38)
    assert batch.input_ids[0, batch.last_index].tolist() == [row[-1] for sequences in LONG for row in sequences]


@pytest.mark.parametrize(
    "groups", [GROUPS, EVEN, LONG, WITHOUT_PREFIX], ids=["ragged", "even", "long", "without_prefix"]
)
@pytest.mark.parametrize("architecture", SUPPORTED)
def test_states_and_gradients_are_those_of_every_sequence_alone(architecture, groups):
    body = build_model(architecture, 300).base_model
    alone = states_alone(body, groups)
    expected = gradients(body, alone)

    packed = packed_states(body, groups)
    received = gradients(body, packed)

    assert supports_shared_prefix(body)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)
    assert received.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(received[name] / scale, gradient / scale, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_no_sequence_sees_another_or_a_later_token():
    body = build_model("llama", 300).base_model
    before = packed_states(body, GROUPS)
    changed = [[sequence.copy() for sequence in sequences] for sequences in GROUPS]
    changed[0][1][-3:] = 11  # The end of the second sequence of the first group.

    after = packed_states(body, changed)

    assert (after[1] - before[1]).abs().max() > 1e-2
    others = [0, *range(2, len(before))]
    torch.testing.assert_close(after[others], before[others], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [GROUPS, LONG], ids=["ragged", "long"])
def test_plain_and_fused_attention_in_bfloat16_agree(groups, monkeypatch):
    body = build_model("llama", 300).base_model

    def states_and_gradients():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = packed_states(body, groups).float()
        return states, gradients(body, states)

    unfused, unfused_gradients = states_and_gradients()
    monkeypatch.setattr("policies.attention.LONGEST_UNFUSED_ATTENTION", 0)
    fused, fused_gradients = states_and_gradients()

    assert not torch.equal(fused, unfused)
    torch.testing.assert_close(fused, unfused, rtol=0.05, atol=0.1)
    for name, gradient in unfused_gradients.items():
        assert (fused_gradients[name] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, name


@pytest.mark.parametrize(
    "groups", [GROUPS, EVEN, LONG, WITHOUT_PREFIX], ids=["ragged", "even", "long", "without_prefix"]
)
def test_the_last_tokens_alone_attend_as_among_all_others(groups):
    batch = pack_groups(groups)
    generator = torch.Generator().manual_seed(1)
    count, last = sum(batch.parts), batch.last_index
    angles = torch.rand(count, 8, generator=generator).repeat(1, 2)
    # Four heads of queries on two of keys and values.
    states = [torch.randn(count, heads, 16, generator=generator, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(len(last), 4, 16, generator=generator)

    def of_last(products):
        output = products(*states, rotation=(angles.cos(), angles.sin()), batch=batch, scale=0.25)
        gradients = torch.autograd.grad((output[last] * weights).sum(), states)
        return output.detach(), gradients

    (expected, of_expected), (received, of_received) = of_last(shared_prefix_products), of_last(last_token_products)

    torch.testing.assert_close(received[last], expected[last])
    assert (received.abs().sum((1, 2)) > 0).nonzero().squeeze(1).tolist() == sorted(last.tolist())
    torch.testing.assert_close(of_received, of_expected)


def test_a_final_layer_whose_last_tokens_are_read_computes_their_attention_alone(monkeypatch):
    body = build_model("llama", 300).base_model
    use_fast_attention(body)
    follow_readers(final_parts(body))
    batch = pack_groups(GROUPS)
    seen = []

    def observed(*states, **settings):
        seen.append(len(states[0]))
        return last_token_products(*states, **settings)

    def states_and_gradients(read):
        with torch.autocast("cpu", dtype=torch.bfloat16), computed_only_at(read):
            states = packed_states_of(body, batch).float()
        return states, gradients(body, states)

    monkeypatch.setattr("policies.rotary_attention.last_token_products", observed)
    states, of_states = states_and_gradients(batch.last_index)
    expected, of_expected = states_and_gradients(torch.arange(sum(batch.parts)))

    assert seen == [sum(batch.parts)]
    torch.testing.assert_close(states, expected, rtol=0.05, atol=0.05)
    for name, gradient in of_expected.items():
        assert (of_states[name] - gradient).norm() < 0.05 * gradient.norm() + 1e-3, name


def test_a_layer_that_loses_the_layout_is_refused():
    body = build_model("llama", 300).base_model
    with pytest.raises(UnsupportedAttentionError, match="does not hand on"), shared_prefix_attention(body):
        body(input_ids=torch.tensor([[5, 6]]), use_cache=False)


def test_the_model_attends_as_before_afterwards_even_after_an_error():
    body = build_model("llama", 300).base_model
    usual = body.config._attn_implementation
    with pytest.raises(IndexError), shared_prefix_attention(body):
        body(input_ids=torch.tensor([[10_000]]), use_cache=False)
    assert body.config._attn_implementation == usual
    packed_states(body, EVEN)
    assert body.config._attn_implementation == usual


def test_sliding_windows_soft_caps_and_foreign_attention_are_not_supported():
    gemma2 = build_model("gemma2", 300).base_model  # Slides in every other layer, and caps.
    llama = build_model("llama", 300).base_model
    for change in ({"sliding_window": 8}, {"attn_logit_softcapping": 30.0}, {"is_causal": False}):
        other = build_model("llama", 300).base_model
        for name, value in change.items():
            setattr(other.config, name, value)
        assert not supports_shared_prefix(other), change
    assert supports_shared_prefix(llama)
    assert not supports_shared_prefix(gemma2)
    llama._supports_attention_backend = False
    assert not supports_shared_prefix(llama)
