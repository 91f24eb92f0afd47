"""The forward and backward pass of a linear layer with one LoRA adapter, in the precision of its base.

Owns one third-party quirk: PEFT's layer casts the input of every adapted layer to the adapter's float32, multiplies
there, and adds the result in a third pass over the output, which costs as much time as a frozen bfloat16 base itself
and keeps a float32 copy of every input for the backward pass. Here the adapter's weights stay float32, their products
run in the precision of the input, and both sums are accumulated by the matrix products themselves. Remove this file
when PEFT does the same (peft 0.21, `lora.Linear.forward`).
"""

from typing import Any, cast

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional


def use_fast_products(layer: lora.LoraLayer) -> None:
    """Gives a plain LoRA layer on a plain linear layer the products of this file; leaves every other kind alone."""
    # Exact types: a quantized base, or a variant of LoRA, computes something else.
    if type(layer) is lora.Linear and type(layer.get_base_layer()) is nn.Linear:
        layer.__class__ = FastLoraLinear


class FastLoraLinear(lora.Linear):
    """y = W x + b + (alpha / rank) B A x."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out) in the precision of x; what is not one plain adapter is left to PEFT."""
        name = self._single_plain_adapter(x)
        if name is None or args or kwargs:
            return super().forward(x, *args, **kwargs)
        base = cast(nn.Linear, self.get_base_layer())
        down, up = self._factors(name, x.dtype)
        if torch.is_grad_enabled():
            return cast(Tensor, _AdaptedProduct.apply(x, base.weight, base.bias, down, up))
        # Through the layer itself, because decoding may have given it another kernel.
        output = base(x)
        output.view(-1, output.shape[-1]).addmm_(functional.linear(x.reshape(-1, x.shape[-1]), down), up.t())
        return output

    def _single_plain_adapter(self, x: Tensor) -> str | None:
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        is_plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        # Dropout needs the input of the adapter apart from that of the base, and autocast chooses precisions itself.
        is_direct = isinstance(self.lora_dropout[name], nn.Identity) if is_plain else False
        return name if is_direct and not torch.is_autocast_enabled(x.device.type) else None

    def _factors(self, name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (r, in) and (alpha / r) B (out, r), rounded to `dtype`; gradients reach the float32 weights."""
        down, up = (cast(nn.Linear, factors[name]).weight for factors in (self.lora_A, self.lora_B))
        return down.to(dtype), (up * self.scaling[name]).to(dtype)


class _AdaptedProduct(torch.autograd.Function):
    """x W^T + b + (x A^T) B^T, and its gradients by x, A and B; W and b are frozen."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ down.t()
        output = functional.linear(rows, weight, bias).addmm_(inner, up.t())
        ctx.save_for_backward(rows, weight, down, up, inner)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, None, None, Tensor, Tensor]:
        rows, weight, down, up, inner = cast(tuple[Tensor, ...], ctx.saved_tensors)
        output_gradient = gradient.reshape(-1, gradient.shape[-1])
        inner_gradient = output_gradient @ up
        by_input = None
        if ctx.needs_input_grad[0]:
            by_input = (output_gradient @ weight).addmm_(inner_gradient, down)
            by_input = by_input.view(*gradient.shape[:-1], -1)
        return by_input, None, None, inner_gradient.t() @ rows, output_gradient.t() @ inner
