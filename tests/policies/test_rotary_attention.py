# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false, reportIndexIssue=false
"""Attention layers of the Llama family on packed rows, against transformers' own."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention

from policies.attention import attention_implementation
from policies.packed_attention import PACKED
from policies.packed_rows import PackedRows
from policies.rotary_attention import use_fast_attention
from tests.tiny_models import build_model

IDS = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 10, 11, 12]])
UNEVEN, EVEN = IDS > 0, torch.ones_like(IDS, dtype=torch.bool)


def states_and_gradients(
    model: PreTrainedModel, mask: Tensor, *, implementation: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """States of the real tokens, and the gradients of a loss that weighs each of them."""
    rows, positions = PackedRows.of(mask), torch.arange(IDS.shape[1]).expand_as(IDS)
    with attention_implementation(model, implementation):
        if implementation == PACKED:
            inputs = {"input_ids": rows.pack(IDS), "position_ids": rows.pack(positions), "packing": rows}
            states = model.base_model(use_cache=False, **inputs).last_hidden_state[0]
        else:
            states = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state[mask]
    model.zero_grad(set_to_none=True)
    (states.float() * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.base_model.named_parameters()}
    return states.float(), {name: gradient.float() for name, gradient in gradients.items() if gradient is not None}


@pytest.mark.parametrize("mask", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_packed_bfloat16_rows_are_as_near_to_float32_as_those_of_transformers(architecture: str, mask: Tensor):
    # Groups of two query heads share a key-value head; qwen2 has biases.
    expected, wanted = states_and_gradients(build_model(architecture, 300), mask, implementation="sdpa")
    plain, fast = (build_model(architecture, 300).bfloat16() for _ in range(2))
    use_fast_attention(fast)
    theirs, their_gradients = states_and_gradients(plain, mask, implementation="sdpa")
    ours, our_gradients = states_and_gradients(fast, mask, implementation=PACKED)

    assert type(fast.base_model.layers[0].self_attn) is not type(plain.base_model.layers[0].self_attn)
    assert error(ours, expected) < 1.5 * error(theirs, expected)
    assert our_gradients.keys() == wanted.keys()
    ours_off, theirs_off = (
        sum(error(gradients[name], wanted[name]) for name in wanted) for gradients in (our_gradients, their_gradients)
    )
    assert ours_off < 1.5 * theirs_off
    assert max(error(our_gradients[name], wanted[name]) for name in wanted) < 0.2


def error(received: Tensor, expected: Tensor) -> float:
    return ((received - expected).norm() / expected.norm()).item()


def test_without_packed_rows_the_layer_is_that_of_transformers():
    plain, fast = (build_model("llama", 300).bfloat16() for _ in range(2))
    use_fast_attention(fast)
    assert torch.equal(plain(input_ids=IDS).logits, fast(input_ids=IDS).logits)


@pytest.mark.parametrize("architecture", ["mistral", "qwen3", "gpt_neox"])
def test_windows_and_other_kinds_of_layers_are_left_alone(architecture: str):
    model = build_model(architecture, 300)
    before = [type(module) for module in model.modules()]
    use_fast_attention(model)
    assert [type(module) for module in model.modules()] == before


def test_a_second_call_changes_nothing():
    model = build_model("llama", 300)
    use_fast_attention(model)
    kind = type(model.base_model.layers[0].self_attn)
    use_fast_attention(model)
    assert type(model.base_model.layers[0].self_attn) is kind
    assert issubclass(kind, LlamaAttention)
