# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportReturnType=false, reportIndexIssue=false
"""MLPs of the Llama family, against transformers' own."""

import copy

import pytest
import torch
from torch import Tensor, nn

from policies.gated_mlp import use_fast_mlps
from tests.tiny_models import build_model


def layer_of(architecture: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """The MLP as it comes, and as it is replaced."""
    model = build_model(architecture, 300).to(dtype)
    fast = copy.deepcopy(model)
    use_fast_mlps(fast)
    return model.base_model.layers[0].mlp, fast.base_model.layers[0].mlp


def passed(layer: nn.Module, rows: int) -> tuple[Tensor, ...]:
    """Output, and the gradients by the input and all weights."""
    weight = layer.gate_proj.weight
    x = torch.linspace(-3, 2, 2 * rows * weight.shape[1]).reshape(2, rows, -1).to(weight.dtype).requires_grad_()
    output = layer(x)
    (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output, x.grad, *(parameter.grad for parameter in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_outputs_are_bit_equal_and_gradients_the_same_up_to_rounding(architecture: str, dtype: torch.dtype) -> None:
    plain, fast = layer_of(architecture, dtype)
    assert type(fast) is not type(plain)
    # More than one piece.
    rows = 2**18 // plain.gate_proj.weight.shape[0] + 3
    (output, *gradients), (expected, *wanted) = passed(fast, rows), passed(plain, rows)
    assert torch.equal(output, expected)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert (ours - theirs).norm() <= torch.finfo(dtype).eps * theirs.norm()


def test_a_quarter_of_the_wide_tensors_is_not_kept() -> None:
    def wide_tensors(layer: nn.Module) -> int:
        width = layer.gate_proj.weight.shape[0]
        kept: set[int] = set()

        def keep(tensor: Tensor) -> Tensor:
            if tensor.shape[-1] == width and tensor.numel() == 2 * 7 * width:
                kept.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            x = torch.ones(2, 7, layer.gate_proj.weight.shape[1], requires_grad=True)
            output = layer(x)
        kept.discard(x.data_ptr())
        del output
        return len(kept)

    plain, fast = layer_of("llama", torch.float32)
    assert (wide_tensors(plain), wide_tensors(fast)) == (4, 3)


def test_another_activation_is_left_alone() -> None:
    model = build_model("llama", 300)
    layer = model.base_model.layers[0].mlp
    layer.act_fn = nn.GELU()
    use_fast_mlps(model)
    assert type(layer).__name__ == "LlamaMLP"
    assert type(model.base_model.layers[1].mlp).__name__ == "FastLlamaMLP"
