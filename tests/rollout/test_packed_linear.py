import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rollout.packed_linear import packed_linears


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def packed_layers(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [nn.Linear(600, 500), nn.Linear(600, 500, bias=False), Conv1D(500, 600)])
@torch.no_grad()
def test_a_packed_layer_computes_the_same(layer: nn.Module, dtype: torch.dtype) -> None:
    layer = layer.to(dtype)
    for shape in ((7, 600), (3, 2, 600)):
        expected = layer(inputs(*shape, dtype=dtype))
        with packed_linears(layer):
            assert packed_layers(layer) == [""]
            received = layer(inputs(*shape, dtype=dtype))
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(received, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_what_is_packed_are_the_weights_at_the_time() -> None:
    layer = nn.Linear(512, 512)
    with packed_linears(layer):
        before = layer(inputs(1, 512))
    assert packed_layers(layer) == []
    layer.weight.mul_(2)
    with packed_linears(layer):
        torch.testing.assert_close(layer(inputs(1, 512)) - layer.bias, 2 * (before - layer.bias), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_move_into_the_packed_form_and_back_bit_for_bit(dtype: torch.dtype) -> None:
    linear, conv, embedding, output = nn.Linear(601, 503), Conv1D(503, 601), nn.Embedding(500, 600), nn.Linear(600, 500)
    model = nn.ModuleList([linear, conv, embedding, output]).to(dtype)
    output.weight = embedding.weight
    linear.weight.grad = torch.ones_like(linear.weight)
    parameters = list(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with packed_linears(model):
        # What is tied is read by the embedding, too.
        assert [layer.weight.numel() > 0 for layer in (linear, conv, output)] == [False, False, True]
    for parameter, held, expected in zip(model.parameters(), parameters, before, strict=True):
        assert parameter is held
        assert parameter.requires_grad
        assert parameter.is_contiguous()
        assert torch.equal(parameter, expected)


def test_weights_come_back_after_an_error() -> None:
    layer = nn.Linear(512, 512)
    before = layer.weight.detach().clone()
    with pytest.raises(KeyError), packed_linears(layer):
        raise KeyError("in a rollout")
    assert torch.equal(layer.weight, before)
    assert packed_layers(layer) == []


def test_a_part_of_a_larger_tensor_is_copied() -> None:
    layer = nn.Linear(512, 512)
    layer.weight.data = torch.randn(1024, 512)[:512]
    with packed_linears(layer):
        assert layer.weight.shape == (512, 512)


class Doubled(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def test_small_layers_other_precisions_and_layers_that_compute_something_else_stay_as_they_are() -> None:
    model = nn.ModuleDict(
        {
            "large": nn.Linear(512, 512),
            "small": nn.Linear(64, 64),
            "float64": nn.Linear(512, 512).double(),
            "other": Doubled(512, 512),
            "norm": nn.LayerNorm(2**18),
        }
    )
    with packed_linears(model):
        assert packed_layers(model) == ["large"]


def test_an_error_inside_leaves_no_packed_layer_behind() -> None:
    layer = nn.Linear(512, 512)
    with pytest.raises(KeyError), packed_linears(layer):
        raise KeyError
    assert packed_layers(layer) == []
