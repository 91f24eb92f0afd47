"""Linear layers on weights that oneDNN has laid out once, for as long as a block lasts.

Owns one third-party quirk: `F.linear` on the CPU rearranges a large weight anew in every call, which costs a quarter
(64 rows) to two thirds (4 rows) of its time. The two operators are those that `torch.compile` emits for frozen weights.
Remove this file when `F.linear` keeps the layout.

Not worth it: naming the number of rows to the operator (it chooses the same layout); one product for the layers that
read the same input, which by itself is a tenth faster for few rows, but no measurable part of a step.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.jit import is_tracing  # pyright: ignore[reportPrivateImportUsage] - documented under this name
from transformers.pytorch_utils import Conv1D

_WORTHWHILE_ELEMENTS = 2**17
"""Smaller weights stay in the processor's cache in either layout, and the operator's own overhead decides."""
_DTYPES = (torch.float32, torch.bfloat16)


@contextmanager
def packed_linears(model: nn.Module, *, keep_weights: bool = False) -> Iterator[list[Tensor]]:
    """Inside, large linear layers of `model` compute from packed weights; outside, as ever.

    What is packed are the weights as they are now. A weight that its layer alone holds lies in the packed form only, as
    an empty parameter, and comes back bit for bit; one that is tied or a part of a larger tensor is copied. So nobody
    may read or write weights inside. Layers off the CPU, and weights in other precisions than float32 and bfloat16, are
    left alone. Yields the packed weights; layers take them from this list in every call, so that a trace can put its
    own there.

    Args:
        model: Its `nn.Linear` layers, and the `Conv1D` of GPT-2, take part.
        keep_weights: Every weight is copied and stays what it is, for adapters that read it in their own forward pass.
    """
    layers = [layer for layer in model.modules() if _is_worthwhile(layer)] if _is_supported() else []
    holders = Counter(id(own) for layer in model.modules() for own in layer.parameters(recurse=False))
    weights: list[Tensor] = []
    moved: set[nn.Module] = set()
    try:
        for index, layer in enumerate(layers):
            weights.append(_packed(layer))
            layer.forward = _packed_forward(layer, weights, index)
            weight = layer.weight
            if not keep_weights and holders[id(weight)] == 1 and _is_whole(weight):
                moved.add(layer)
                weight.data = weight.new_empty(0)
        yield weights
    finally:
        # One by one, each packed weight freed when its own is back.
        while weights:
            layer, packed = layers[len(weights) - 1], weights.pop()
            vars(layer).pop("forward", None)
            if layer in moved:
                _restore(layer, packed)


def _is_supported() -> bool:
    operators = torch.ops.mkldnn
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
    )


def _is_worthwhile(layer: nn.Module) -> bool:
    # Exact types: a subclass may compute something else.
    if type(layer) not in (nn.Linear, Conv1D) or "forward" in vars(layer):
        return False
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return weight.device.type == "cpu" and weight.dtype in _DTYPES and weight.numel() >= _WORTHWHILE_ELEMENTS


def _packed(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    out_by_in = weight.detach().t() if isinstance(layer, Conv1D) else weight.detach()
    return torch.ops.mkldnn._reorder_linear_weight(out_by_in)


def _is_whole(weight: object) -> TypeGuard[nn.Parameter]:
    """Whether a weight has memory of its own, in the one order that `_restore` writes."""
    if type(weight) is not nn.Parameter:
        return False
    return weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes


def _restore(layer: nn.Module, packed: Tensor) -> None:
    out_by_in = packed.to_dense()
    layer.weight.data = out_by_in.t().contiguous() if isinstance(layer, Conv1D) else out_by_in


def _packed_forward(layer: nn.Module, weights: Sequence[Tensor], index: int) -> Callable[[Tensor], Tensor]:
    linear = torch.ops.mkldnn._linear_pointwise.default

    def forward(inputs: Tensor) -> Tensor:
        if is_tracing():
            return _traceable().packed_linear(inputs, weights[index], layer.bias)
        return linear(inputs, weights[index], layer.bias, "none", [], "")

    return forward


@cache
def _traceable() -> Any:
    """The same operator as a function of TorchScript, whose tracer cannot write down an empty list of scalars."""
    return torch.jit.CompilationUnit("""
def packed_linear(inputs: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    scalars: List[Optional[number]] = []
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", scalars, "")
""")
