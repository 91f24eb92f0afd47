"""Rows of unlike length as one packed row: every layer computes real tokens only, attention alone sees rows apart.

Owns the layout, the attention function that transformers' layers call with it, and a third-party quirk: torch's fused
attention on a CPU does not use the bfloat16 instructions in its backward pass, which takes three times as long as the
matrix products of `_CausalProduct` at 128 tokens. Remove that class when it does (torch 2.13).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

PACKED = "packed_rows"
"""Name by which transformers knows `attend`: forward passes then take ids of (1, N) and `packing=PackedRows`."""
_LONGEST_PRODUCT = 256
"""Tokens up to which the plain products are worth the (T, T) probabilities they keep for the backward pass."""
_HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
"""What layers hand on to their attention function without meaning anything else than causal attention."""


class UnsupportedAttentionError(RuntimeError):
    """The layers ask for more than causal attention: a window, a soft cap, sinks, a bias."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """M right-padded rows of T slots, of which N hold tokens.

    Attributes:
        rows: M.
        width: T.
        slots: (N,) slots of the tokens in the flattened (M * T,); None where every slot holds one.
        layers: Identities of the attention layers that have kept these rows apart.
    """

    rows: int
    width: int
    slots: Tensor | None
    layers: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, mask: Tensor) -> "PackedRows":
        """The layout of an (M, T) mask that is True at real tokens."""
        rows, width = mask.shape
        return cls(rows, width, None if bool(mask.all()) else mask.reshape(-1).nonzero().squeeze(1))

    def pack(self, padded: Tensor) -> Tensor:
        """(M, T, ...) -> (1, N, ...), the tokens of one row after another."""
        flat = padded.reshape(self.rows * self.width, *padded.shape[2:])
        return (flat if self.slots is None else flat.index_select(0, self.slots)).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (M, T, ...), 0 at padding."""
        flat = packed.squeeze(0)
        if self.slots is not None:
            empty = flat.new_zeros(self.rows * self.width, *flat.shape[1:])
            flat = empty.index_copy(0, self.slots, flat)
        return flat.reshape(self.rows, self.width, *flat.shape[1:])


@contextmanager
def attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Inside, the layers of `model` attend by the function of this name; with `PACKED`, packed ids and rows."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    packing: PackedRows | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each row, as transformers' attention functions are called.

    Args:
        module: The attention layer.
        query: (1, query heads, N, head size).
        key: (1, heads, N, head size).
        value: (1, heads, N, head size).
        attention_mask: None.
        scaling: Factor of the scores; None means 1 / sqrt(head size).
        packing: Where rows begin and end.
        settings: What else the layer passes on.

    Returns:
        (1, N, query heads, head size), and no weights.

    Raises:
        UnsupportedAttentionError: the layer wants something else than causal attention, or lost the layout.
    """
    unknown = sorted(name for name, setting in settings.items() if setting is not None and name not in _HARMLESS)
    if packing is None or unknown or attention_mask is not None:
        wish = f"asks for {unknown or 'a mask'}" if packing is not None else "does not hand on how rows are packed"
        raise UnsupportedAttentionError(f"{type(module).__name__} {wish}")
    packing.layers.add(id(module))
    # Heads behind tokens for the layout, before them for the products.
    q, k, v = (packing.unpack(states.transpose(1, 2)).transpose(1, 2) for states in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return packing.pack(_causal(q, k, v, scale).transpose(1, 2)), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """(M, query heads, T, head size) attention over each row's own past."""
    is_short_cpu = query.device.type == "cpu" and query.shape[2] <= _LONGEST_PRODUCT
    if is_short_cpu and query.dtype == torch.bfloat16:
        return cast(Tensor, _CausalProduct.apply(query, key, value, scale))
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)


class _CausalProduct(torch.autograd.Function):
    """softmax(scale * Q K^T + causal mask) V by batched products; scores and softmax in float32.

    Query heads that share a key-value head are rows of one product.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        rows, heads, width, size = key.shape
        # (M * heads, T or groups * T, head size): one product for each key-value head.
        q, k, v = (states.reshape(rows * heads, -1, size) for states in (query, key, value))
        future = torch.full((width, width), -math.inf).triu(1).repeat(q.shape[1] // width, 1)
        scores = torch.baddbmm(future, q.float(), k.float().transpose(1, 2), alpha=scale)
        probabilities = torch.softmax(scores, dim=-1).to(v.dtype)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale, ctx.shapes = scale, (query.shape, key.shape)
        return torch.bmm(probabilities, v).view(query.shape)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, probabilities = cast(tuple[Tensor, ...], ctx.saved_tensors)
        query_shape, key_shape = ctx.shapes
        by_output = gradient.reshape(q.shape)
        by_value = torch.bmm(probabilities.transpose(1, 2), by_output)
        by_probability = torch.bmm(by_output, v.transpose(1, 2))
        by_score = cast(Any, torch)._softmax_backward_data(by_probability, probabilities, -1, v.dtype) * ctx.scale
        by_query = torch.bmm(by_score, k)
        by_key = torch.bmm(by_score.transpose(1, 2), q)
        return by_query.view(query_shape), by_key.view(key_shape), by_value.view(key_shape), None


AttentionInterface.register(PACKED, cast(Any, attend))
