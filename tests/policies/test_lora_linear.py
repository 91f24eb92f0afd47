# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false
"""Our products of an adapted linear layer, against PEFT's."""

from typing import cast

import pytest
import torch
from peft import LoraConfig
from peft.tuners import lora
from torch import Tensor, nn

from policies.lora_linear import FastLoraLinear, joint_products, use_fast_products

BF16 = torch.bfloat16


def layer_of(*, dtype: torch.dtype = torch.float32, bias: bool = True, **options: object) -> lora.Linear:
    """5 inputs, 3 outputs, rank 2, alpha / rank = 4."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, **options)  # type: ignore[arg-type]
    layer = lora.Linear(nn.Linear(5, 3, bias=bias, dtype=dtype), "a", r=2, lora_alpha=8, config=config)
    layer.get_base_layer().requires_grad_(False)
    for name in ("lora_A", "lora_B"):
        cast(nn.ModuleDict, getattr(layer, name)).float()
    return layer


def trained(layer: lora.Linear) -> list[Tensor]:
    return [layer.lora_A["a"].weight, layer.lora_B["a"].weight]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (BF16, 4e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_peft(dtype: torch.dtype, tolerance: float, *, bias: bool):
    theirs, ours = layer_of(dtype=dtype, bias=bias), layer_of(dtype=dtype, bias=bias)
    use_fast_products(ours)
    assert type(ours) is FastLoraLinear
    inputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = torch.linspace(-1, 1, 24).view(2, 4, 3)
    results: list[tuple[Tensor, tuple[Tensor, ...]]] = []
    for layer in (theirs, ours):
        x = inputs.clone().requires_grad_()
        output = layer(x)
        results.append((output, torch.autograd.grad((output.float() * weights).sum(), [x, *trained(layer)])))
    (expected, expected_gradients), (output, gradients) = results

    assert output.dtype == dtype
    assert torch.allclose(output.float(), expected.float(), atol=tolerance)
    for ours_, theirs_ in zip(gradients, expected_gradients, strict=True):
        assert ours_.dtype == theirs_.dtype
        assert float(theirs_.abs().max()) > 0.5
        assert torch.allclose(ours_.float(), theirs_.float(), rtol=tolerance, atol=2 * tolerance)
    with torch.no_grad():
        assert torch.allclose(ours(inputs).float(), output.float(), atol=tolerance)


def test_no_gradient_is_computed_for_what_does_not_need_one():
    layer = layer_of()
    use_fast_products(layer)
    inputs = torch.randn(4, 5)
    layer(inputs).sum().backward()
    assert inputs.grad is None
    assert layer.get_base_layer().weight.grad is None
    assert all(parameter.grad is not None for parameter in trained(layer))


def test_without_gradients_the_base_layer_itself_is_called():
    # Decoding gives it another kernel.
    layer = layer_of()
    use_fast_products(layer)
    layer.get_base_layer().forward = lambda x: torch.full((*x.shape[:-1], 3), 7.0)
    with torch.no_grad():
        adapter_alone = layer(torch.ones(1, 5)) - 7.0
    down, up = trained(layer)
    assert torch.allclose(adapter_alone, 4 * torch.ones(1, 5) @ down.t() @ up.t(), atol=1e-5)


def test_an_adapter_that_is_off_leaves_the_base_bit_equal():
    layer = layer_of()
    use_fast_products(layer)
    layer.enable_adapters(enabled=False)
    inputs = torch.randn(4, 5)
    assert torch.equal(layer(inputs), layer.get_base_layer()(inputs))


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}])
def test_what_is_not_plain_lora_is_left_to_peft(options: dict[str, object]):
    layer, theirs = layer_of(**options), layer_of(**options)
    use_fast_products(layer)
    inputs = torch.randn(4, 5)
    torch.manual_seed(1)
    expected = theirs(inputs)
    torch.manual_seed(1)
    assert torch.equal(layer(inputs), expected)


def test_autocast_is_left_to_peft():
    layer, theirs = layer_of(), layer_of()
    use_fast_products(layer)
    inputs = torch.randn(4, 5)
    with torch.autocast("cpu", dtype=BF16):
        assert torch.equal(layer(inputs), theirs(inputs))


def test_a_layer_that_is_no_plain_linear_one_is_left_alone():
    embedding = lora.Embedding(nn.Embedding(4, 3), "a", r=2, config=LoraConfig(r=2))
    use_fast_products(embedding)
    assert type(embedding) is lora.Embedding


def three_layers() -> list[lora.Linear]:
    """5 inputs; 3, 4 and 2 outputs; ranks 2, 1 and 3; alpha / rank 4, 8 and 1."""
    layers = []
    for outputs, rank, alpha, bias in ((3, 2, 8, True), (4, 1, 8, False), (2, 3, 3, True)):
        torch.manual_seed(outputs)
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=False)
        layer = lora.Linear(nn.Linear(5, outputs, bias=bias), "a", r=rank, lora_alpha=alpha, config=config)
        layer.get_base_layer().requires_grad_(False)
        layers.append(layer)
    return layers


def outputs_and_gradients(outputs: list[Tensor], x: Tensor, layers: list[lora.Linear]) -> list[Tensor]:
    loss = sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in outputs)
    return [*outputs, *torch.autograd.grad(loss, [x, *(tensor for layer in layers for tensor in trained(layer))])]


def test_layers_that_read_the_same_input_share_products_and_stay_what_they_are():
    theirs, ours = three_layers(), three_layers()
    for layer in ours:
        use_fast_products(layer)
    x = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    expected = outputs_and_gradients([layer(x) for layer in theirs], x, theirs)
    received = outputs_and_gradients(joint_products(x, ours), x, ours)
    assert len(received) == 3 + 1 + 6
    for ours_, theirs_ in zip(received, expected, strict=True):
        assert torch.allclose(ours_, theirs_, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for ours_, theirs_ in zip(joint_products(x, ours), expected, strict=False):
            assert torch.allclose(ours_, theirs_, rtol=1e-5, atol=1e-5)


def test_one_layer_without_an_adapter_leaves_all_to_themselves():
    layers = three_layers()
    for layer in layers:
        use_fast_products(layer)
    layers[1].enable_adapters(enabled=False)
    x = torch.randn(4, 5)
    assert all(torch.equal(y, layer(x)) for y, layer in zip(joint_products(x, layers), layers, strict=True))
