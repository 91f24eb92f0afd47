"""Frozen linear layers held in 8 or 4 bits (QLoRA, Dettmers et al. 2023): a quarter or an eighth of float32's memory.

Owns the number formats, through bitsandbytes, which has kernels for CUDA and the CPU, and the layer that multiplies
with them. A weight is dequantized for each product, in the precision of its input, and again in the backward pass: so a
token's result depends on no other token (bitsandbytes' own 8-bit layer rounds activations too, by row and with outliers
by column), and ratios, padding and batch order behave as with plain weights.
"""

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from policies.config import Quantization

_BLOCK = 64
"""Weights that share a scale, the largest absolute value among them."""


class QuantizedLinear(nn.Linear):
    """y = dequantize(W) x + b; W is frozen, its `weight` holds codes and no numbers."""

    def __init__(self, weight: Tensor, bias: Tensor | None, format: Quantization) -> None:
        """Quantizes a weight.

        Args:
            weight: (out, in), floating point, on the device where the layer will live.
            bias: (out,), kept as it is; None for none.
            format: "int8" or "nf4".
        """
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.format: Quantization = format
        codes, scales = _quantize(weight.detach().contiguous(), format)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_buffer("scales", scales)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the precision of the input; gradients reach the input alone."""
        return _QuantizedProduct.apply(input, self)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """(out, in), the weight that the layer stands for."""
        shape = (self.out_features, self.in_features)
        return _dequantize(self.weight.data, self.get_buffer("scales"), shape, dtype, self.format)

    def plain(self, dtype: torch.dtype) -> nn.Linear:
        """An ordinary layer that computes the same."""
        layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        layer.weight = nn.Parameter(self.dequantized(dtype), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.detach().to(dtype), requires_grad=False)
        return layer


def quantize_linears(body: nn.Module, format: Quantization, device: torch.device | str) -> None:
    """Puts quantized layers on `device` in the place of all linear layers (and GPT-2's `Conv1D`) of a frozen body.

    One by one, so the device never holds the plain model. What else the body has stays where it is.

    Args:
        body: Without output layer or score head, which keep their precision.
        format: "int8" (linear, 8 bits) or "nf4" (4 bits, spaced for normal weights); each with a scale for 64 weights.
        device: Where the quantized layers live.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"model.quantization={format}: bitsandbytes is not installed; `pip install rlhf[quantized]`, or set "
            "model.quantization=none"
        )
    for name, layer in list(body.named_modules()):
        if type(layer) in (nn.Linear, Conv1D):
            parent, _, child = name.rpartition(".")
            setattr(body.get_submodule(parent), child, _quantized(layer, format, device))


def dequantize_linears(model: nn.Module, dtype: torch.dtype) -> None:
    """Puts ordinary layers in the place of all quantized ones; they hold what the codes stand for."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.plain(dtype))


def quantization_of(model: nn.Module) -> Quantization:
    """The format of its quantized layers; "none" where there are none."""
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            return layer.format
    return "none"


class _QuantizedProduct(torch.autograd.Function):
    """x W^T + b, and its gradient by x; keeps the codes for the backward pass, not W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.dequantized(x.dtype), bias)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


def _quantized(layer: nn.Module, format: Quantization, device: torch.device | str) -> QuantizedLinear:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor), "a linear layer has a weight"
    out_by_in = weight.t() if isinstance(layer, Conv1D) else weight
    bias = bias.to(device) if isinstance(bias, Tensor) else None
    return QuantizedLinear(out_by_in.to(device), bias, format).eval()


def _quantize(weight: Tensor, format: Quantization) -> tuple[Tensor, Tensor]:
    """Codes, uint8, and float32 scales."""
    if format == "nf4":
        codes, state = _bitsandbytes().quantize_4bit(weight, blocksize=_BLOCK, quant_type=format)
    else:
        code = _linear_code(weight.device)
        codes, state = _bitsandbytes().quantize_blockwise(weight, code=code, blocksize=_BLOCK)
    return codes, state.absmax


def _dequantize(
    codes: Tensor, scales: Tensor, shape: tuple[int, int], dtype: torch.dtype, format: Quantization
) -> Tensor:
    # As one row: the 4-bit kernel for the CPU (bitsandbytes 0.50) takes wrong scales where rows end within a block.
    state = _bitsandbytes().QuantState(
        absmax=scales,
        shape=torch.Size((1, math.prod(shape))),
        code=None if format == "nf4" else _linear_code(codes.device),
        blocksize=_BLOCK,
        quant_type=format,
        dtype=dtype,
    )
    if format == "nf4":
        return _bitsandbytes().dequantize_4bit(codes, state).view(shape)
    return _bitsandbytes().dequantize_blockwise(codes, state)


def _bitsandbytes() -> Any:
    # Optional, and slow to load.
    from bitsandbytes import functional  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    return functional


@cache
def _linear_code(device: torch.device) -> Tensor:
    """(256,) the numbers -127/127 .. 127/127 that 8-bit codes stand for, 0 twice."""
    steps = torch.arange(-127, 128, device=device, dtype=torch.float32) / 127
    return torch.cat([steps[:128], steps[127:]])
