"""The MLP of the Llama family under gradients, with a quarter less memory for the backward pass.

Owns one third-party quirk: of down(silu(gate) * up) autograd keeps silu(gate) beside gate, up and their product.
Here it is computed again for the backward pass, in pieces that stay in the cache. Remove this file when transformers'
layers do (transformers 5.23).
"""

from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.mistral.modeling_mistral import MistralMLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP

_KINDS = (LlamaMLP, MistralMLP, Qwen2MLP, Qwen3MLP)
"""Exact types, because a subclass may compute something else."""
_NUMBERS_AT_A_TIME = 2**18


def use_fast_mlps(model: nn.Module) -> None:
    """Gives the MLPs of `model` that are of a known kind the passes with gradients of this file.

    Outputs stay bit-equal; passes without gradients are left as they are.
    """
    for layer in model.modules():
        if type(layer) in _KINDS and type(layer.act_fn) in (nn.SiLU, SiLUActivation):
            # A class, because a function set on the object would go on reading its layers in every copy of the model.
            cast(Any, layer).__class__ = _fast_class(type(layer))


@cache
def _fast_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Fast{kind.__name__}", (_FastForward, kind), {})


class _FastForward(nn.Module):
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))


class _Gated(torch.autograd.Function):
    """y = silu(gate) * up, of which gate and up alone are kept.

    With g the gradient by y, that by up is g silu(gate), and that by gate g up silu'(gate).
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        gate, up = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        by_gate, by_up = torch.empty_like(gate), torch.empty_like(up)
        columns = (tensor.reshape(-1, gate.shape[-1]) for tensor in (gradient, gate, up))
        by_gate_rows, by_up_rows = (tensor.view(-1, gate.shape[-1]) for tensor in (by_gate, by_up))
        step = max(1, _NUMBERS_AT_A_TIME // gate.shape[-1])
        if gate.device.type != "cpu":
            step = max(1, len(by_up_rows))
        for g, x, y, to_gate, to_up in zip(
            *(rows.split(step) for rows in (*columns, by_gate_rows, by_up_rows)), strict=True
        ):
            torch.mul(g, silu(x), out=to_up)
            torch.ops.aten.silu_backward.grad_input(g * y, x, grad_input=to_gate)
        return by_gate, by_up
