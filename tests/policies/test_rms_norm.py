"""Our backward pass of a norm, against autograd's through transformers' norm."""

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from policies.rms_norm import use_fast_norms


def norm_of(dtype: torch.dtype) -> LlamaRMSNorm:
    norm = LlamaRMSNorm(6, eps=1e-3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 1.0, 0.25, 1.5]))
    return norm


def results_of(norm: nn.Module, inputs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    x = inputs.clone().requires_grad_()
    output = norm(x)
    weights = torch.linspace(-1, 1, output.numel()).view_as(output)
    return output, torch.autograd.grad((output.float() * weights).sum(), [x, *norm.parameters()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_the_output_is_bit_equal_and_gradients_are_those_of_autograd(dtype: torch.dtype, tolerance: float):
    theirs, ours = norm_of(dtype), norm_of(dtype)
    use_fast_norms(ours)
    assert type(ours) is not LlamaRMSNorm
    inputs = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    (expected, expected_gradients), (output, gradients) = results_of(theirs, inputs), results_of(ours, inputs)
    assert torch.equal(output, expected)
    with torch.no_grad():
        assert torch.equal(ours(inputs), expected)
    for ours_, theirs_ in zip(gradients, expected_gradients, strict=True):
        assert ours_.dtype == theirs_.dtype
        assert float(theirs_.abs().max()) > 0.3
        assert torch.allclose(ours_.float(), theirs_.float(), rtol=tolerance, atol=tolerance)


def test_a_gradient_worked_by_hand():
    # x = (3, 4), mean square 12.5; y1 = x1 / sqrt(12.5), so dy1/dx = (1 - 9/25, -12/25) / sqrt(12.5).
    norm = LlamaRMSNorm(2, eps=0.0)
    use_fast_norms(norm)
    x = torch.tensor([[3.0, 4.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x)[0, 0], [x])
    assert gradient[0].tolist() == pytest.approx([0.64 / 12.5**0.5, -0.48 / 12.5**0.5], abs=1e-6)


def test_a_copy_of_a_model_reads_its_own_weights():
    norm = norm_of(torch.float32)
    use_fast_norms(norm)
    twin = copy.deepcopy(norm)
    inputs = torch.ones(1, 6)
    norm.weight.data.zero_()
    assert norm(inputs).tolist() == [[0.0] * 6]
    assert twin(inputs).tolist() != [[0.0] * 6]


def test_a_second_call_changes_nothing():
    norm = norm_of(torch.float32)
    use_fast_norms(norm)
    kind = type(norm)
    use_fast_norms(norm)
    assert type(norm) is kind


def test_a_norm_that_computes_something_else_is_left_alone():
    model = nn.ModuleList([Gemma2RMSNorm(6), nn.LayerNorm(6), nn.RMSNorm(6)])
    before = [type(layer) for layer in model]
    use_fast_norms(model)
    assert [type(layer) for layer in model] == before
