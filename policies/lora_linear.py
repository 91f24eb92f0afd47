"""The forward and backward pass of linear layers with one LoRA adapter each, in the precision of their base.

Owns one third-party quirk: PEFT's layer casts the input of every adapted layer to the adapter's float32, multiplies
there, and adds the result in a third pass over the output, which costs as much time as a frozen bfloat16 base itself
and keeps a float32 copy of every input for the backward pass. Here the adapter's weights stay float32, their products
run in the precision of the input, sums are accumulated by the matrix products themselves, and layers that read the same
input share the thin product with their A. Remove this file when PEFT does the same (peft 0.21, `lora.Linear.forward`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional


def use_fast_products(layer: lora.LoraLayer) -> None:
    """Gives a plain LoRA layer on a plain linear layer the products of this file; leaves every other kind alone."""
    # Exact types: a quantized base, or a variant of LoRA, computes something else.
    if type(layer) is lora.Linear and type(layer.get_base_layer()) is nn.Linear:
        layer.__class__ = FastLoraLinear


def joint_products(x: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """[layer(x) for layer in layers], with products in common where each layer has one plain adapter."""
    adapted = [layer.adapted(x) if isinstance(layer, FastLoraLinear) else None for layer in layers]
    if None in adapted:
        return [layer(x) for layer in layers]
    return _products(x, cast(list[_Adapted], adapted))


class _Adapted(NamedTuple):
    """A linear layer, A (r, in), B (out, r) and alpha / r."""

    base: nn.Linear
    down: Tensor
    up: Tensor
    scaling: float


class FastLoraLinear(lora.Linear):
    """y = W x + b + (alpha / rank) B A x."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out) in the precision of x; what is not one plain adapter is left to PEFT."""
        adapted = None if args or kwargs else self.adapted(x)
        if adapted is None:
            return super().forward(x, *args, **kwargs)
        return _products(x, [adapted])[0]

    def adapted(self, x: Tensor) -> _Adapted | None:
        """What this layer computes of x; None where it is not one plain adapter."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return None
        (name,) = self.active_adapters
        is_plain = name in self.lora_A and name not in self.lora_variant and not self.lora_bias[name]
        # Dropout needs the input of the adapter apart from that of the base, and autocast chooses precisions itself.
        is_direct = isinstance(self.lora_dropout[name], nn.Identity) if is_plain else False
        if not is_direct or torch.is_autocast_enabled(x.device.type):
            return None
        down, up = (cast(nn.Linear, factors[name]).weight for factors in (self.lora_A, self.lora_B))
        return _Adapted(cast(nn.Linear, self.get_base_layer()), down, up, self.scaling[name])


def _products(x: Tensor, adapted: Sequence[_Adapted]) -> list[Tensor]:
    """What each of the layers makes of the same x."""
    if torch.is_grad_enabled():
        scalings = [part.scaling for part in adapted]
        tensors = (tensor for part in adapted for tensor in (part.base.weight, part.base.bias, part.down, part.up))
        return list(cast(tuple[Tensor, ...], _AdaptedProducts.apply(x, scalings, *tensors)))
    rows = x.reshape(-1, x.shape[-1])
    down, ups = _in_precision_of(x, [part.down for part in adapted], [part.up * part.scaling for part in adapted])
    inner = functional.linear(rows, down).split([part.down.shape[0] for part in adapted], dim=1)
    # Through the layers themselves, because decoding may have given them another kernel.
    outputs = [part.base(x) for part in adapted]
    for output, part, up in zip(outputs, inner, ups, strict=True):
        output.view(-1, output.shape[-1]).addmm_(part, up.t())
    return outputs


def _in_precision_of(x: Tensor, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """All A as one (r_1 + r_2 + ..., in), and each B, rounded."""
    return (torch.cat(tuple(downs)) if len(downs) > 1 else downs[0]).to(x.dtype), [up.to(x.dtype) for up in ups]


class _AdaptedProducts(torch.autograd.Function):
    """y_i = x W_i^T + b_i + s_i (x A_i^T) B_i^T, and its gradients by x, A_i and B_i; W_i and b_i are frozen.

    With g_i the gradient by y_i and G = (s_1 g_1 B_1, s_2 g_2 B_2, ...) side by side, that by x is
    g_1 W_1 + g_2 W_2 + ... + G A, that by all A together G^T x, and that by B_i is s_i g_i^T (x A_i^T).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scalings: Sequence[float], *tensors: Tensor) -> tuple[Tensor, ...]:
        weights, biases, downs, ups = (tensors[start::4] for start in range(4))
        rows, ranks = x.reshape(-1, x.shape[-1]), [down.shape[0] for down in downs]
        scaled = [up * scaling for up, scaling in zip(ups, scalings, strict=True)]
        down, scaled = _in_precision_of(x, downs, scaled)
        inner = rows @ down.t()
        outputs = [
            functional.linear(rows, weight, bias).addmm_(part, up.t()).view(*x.shape[:-1], -1)
            for weight, bias, part, up in zip(weights, biases, inner.split(ranks, dim=1), scaled, strict=True)
        ]
        ctx.save_for_backward(rows, down, inner, *weights, *scaled)
        ctx.scalings, ctx.ranks, ctx.dtype = scalings, ranks, downs[0].dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        rows, down, inner, *rest = cast(tuple[Tensor, ...], ctx.saved_tensors)
        weights, ups = rest[: len(gradients)], rest[len(gradients) :]
        by_output = [gradient.reshape(-1, gradient.shape[-1]) for gradient in gradients]
        by_inner = torch.cat([gradient @ up for gradient, up in zip(by_output, ups, strict=True)], dim=1)
        by_down = (by_inner.t() @ rows).to(ctx.dtype).split(ctx.ranks)
        by_up = [
            (gradient.t() @ part).to(ctx.dtype).mul_(scaling)
            for gradient, part, scaling in zip(by_output, inner.split(ctx.ranks, dim=1), ctx.scalings, strict=True)
        ]
        by_input = None
        if ctx.needs_input_grad[0]:
            by_input = by_output[0] @ weights[0]
            for gradient, weight in zip(by_output[1:], weights[1:], strict=True):
                by_input.addmm_(gradient, weight)
            by_input = by_input.addmm_(by_inner, down).view(*gradients[0].shape[:-1], -1)
        by_tensors = (part for down_up in zip(by_down, by_up, strict=True) for part in (None, None, *down_up))
        return by_input, None, *by_tensors
