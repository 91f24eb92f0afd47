"""Stands in for `bitsandbytes.functional` where it is not installed: the same formats and calls, one value a byte.

Codes of 4 bits are not packed, so memory is not what it measures; the numbers are those of the real library, but for
weights that lie between two codes.
"""

import sys
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from policies import quantization

_NEGATIVE = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0)
_POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
_NF4 = torch.tensor([*_NEGATIVE, *_POSITIVE])
"""The 16 numbers of Dettmers et al. 2023, appendix E."""


@dataclass
class QuantState:
    absmax: Tensor
    shape: torch.Size | None = None
    code: Tensor | None = None
    blocksize: int = 64
    quant_type: str | None = None
    dtype: torch.dtype = torch.float32


def quantize_blockwise(weight: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, QuantState]:
    padded = torch.nn.functional.pad(weight.float().flatten(), (0, -weight.numel() % blocksize)).view(-1, blocksize)
    scales = padded.abs().amax(dim=1)
    shares = padded / scales.clamp(min=1e-30)[:, None]
    codes = (shares[..., None] - code).abs().argmin(dim=-1).to(torch.uint8)
    return codes.flatten()[: weight.numel()].view(weight.shape), QuantState(scales, code=code, blocksize=blocksize)


def dequantize_blockwise(codes: Tensor, state: QuantState) -> Tensor:
    assert state.code is not None, "a code says what the codes stand for"
    scales = state.absmax.repeat_interleave(state.blocksize)[: codes.numel()]
    return (state.code[codes.flatten().long()] * scales).view(codes.shape).to(state.dtype)


def quantize_4bit(weight: Tensor, blocksize: int, quant_type: str) -> tuple[Tensor, QuantState]:
    assert quant_type == "nf4", "the only format of 4 bits that is used"
    codes, state = quantize_blockwise(weight, _NF4, blocksize)
    return codes.view(-1, 1), state


def dequantize_4bit(codes: Tensor, state: QuantState) -> Tensor:
    return dequantize_blockwise(codes, QuantState(state.absmax, code=_NF4, dtype=state.dtype))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `policies.quantization` take this module for the library until the test ends; others do not see it."""
    monkeypatch.setattr(quantization, "find_spec", lambda _: True)
    monkeypatch.setattr(quantization, "_bitsandbytes", lambda: sys.modules[__name__])
