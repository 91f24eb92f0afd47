"""Attention of one new token a row over cached keys and values, on the CPU.

Owns one third-party quirk: for a single query, torch's fused CPU attention multiplies each head by itself, which takes
two to four times as long in bfloat16 as two batched products, and a quarter longer in float32. Remove this file when
`scaled_dot_product_attention` is as fast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

_NAME = "rollout_decode"


@contextmanager
def decode_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, single queries of a CPU model with `sdpa` attention take the fast way; everything else is unchanged."""
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    if before == "sdpa" and model.device.type == "cpu":
        config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def single_query_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """softmax(query key^T * scaling) value, as transformers' attention functions are called.

    Query heads that share a key-value head are one matrix product. Calls with more than one query per row, or with a
    bias, go to torch's fused attention.

    Args:
        module: The attention layer.
        query: (B, query heads, 1, head size).
        key: (B, heads, W, head size).
        value: (B, heads, W, head size).
        attention_mask: (B, 1, 1, W), added to the scores; None means that rows may look everywhere.
        scaling: Factor of the scores; None means 1 / sqrt(head size).
        settings: What else the layer passes on.

    Returns:
        (B, 1, query heads, head size), and no weights.
    """
    if query.shape[2] != 1 or settings.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    batch, heads, size = key.shape[0], key.shape[1], query.shape[-1]
    grouped = query.reshape(batch, heads, -1, size) * (size**-0.5 if scaling is None else scaling)
    scores = torch.matmul(grouped, key.transpose(2, 3))
    if attention_mask is not None:
        scores += attention_mask
    mixed = torch.matmul(torch.softmax(scores, dim=-1), value)
    return mixed.reshape(batch, 1, -1, value.shape[-1]), None


def _mask(*, q_length: int, **settings: Any) -> Tensor | None:
    """Additive for single queries, once for all layers; for others what the fused attention wants."""
    return (eager_mask if q_length == 1 else sdpa_mask)(q_length=q_length, **settings)


AttentionInterface.register(_NAME, single_query_attention)
AttentionMaskInterface.register(_NAME, _mask)
