"""Rows of unlike length as one packed row: every layer computes real tokens only, attention alone sees rows apart.

Owns the attention function that transformers' layers call with a layout of `policies.packed_rows`.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from policies.attention import UnsupportedAttentionError, trains_faster_unfused
from policies.head_blocks import Rotation, from_blocks, to_blocks
from policies.packed_rows import PackedRows
from policies.plain_attention import plain_attention

PACKED = "packed_rows"
"""Name by which transformers knows `attend`: forward passes then take ids of (1, N) and `packing=PackedRows`."""
_HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
"""What layers hand on to their attention function without meaning anything else than causal attention."""


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Autocast leaves rotated queries and keys in float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if trains_faster_unfused(query.device, query.dtype, packing.width):
        # Tokens before heads, as the layers before attention have made them.
        states = [states[0].transpose(0, 1) for states in (query, key, value)]
        return causal_products(*states, rotation=None, rows=packing, scale=scale)[None], None
    # Heads behind tokens for the layout, before them for the products.
    shape = (packing.rows, packing.width)
    q, k, v = (
        packing.spread(states[0].transpose(0, 1)).unflatten(0, shape).transpose(1, 2) for states in (query, key, value)
    )
    output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
    return packing.gather(output.transpose(1, 2).flatten(0, 1)).unsqueeze(0), None


def causal_products(
    query: Tensor, key: Tensor, value: Tensor, *, rotation: Rotation | None, rows: PackedRows, scale: float
) -> Tensor:
    """softmax(scale * Q K^T + causal mask) V of each row by batched products; scores and softmax in float32.

    Args:
        query: (N, query heads, head size).
        key: (N, heads, head size).
        value: (N, heads, head size).
        rotation: Turns queries and keys; None where they have been turned.
        rows: Where rows begin and end.
        scale: Factor of the scores.

    Returns:
        (N, query heads, head size).
    """
    groups = query.shape[1] // key.shape[1]
    queries = to_blocks(query, rows, groups=groups, rotation=rotation)
    keys, values = to_blocks(key, rows, rotation=rotation), to_blocks(value, rows)
    future = torch.full((1, rows.width, rows.width), -math.inf).triu(1).repeat(1, groups, 1)
    blocks = plain_attention(queries, keys, values, future, scale=scale, float32_scores=True)
    return from_blocks(blocks, rows, groups=groups)


AttentionInterface.register(PACKED, cast(Any, attend))
