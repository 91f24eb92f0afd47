"""Attention in a packed row: each prefix to itself, each rest to its group's prefix and to itself, all causally.

Owns the attention function that transformers calls, when it is in force, and which models it is exact for. The layout
of the row is `policies.shared_prefix`.

Linear layers and norms see every token once and no padding; only attention, a small part of the work at these lengths,
pads to blocks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from policies.attention import UnsupportedAttentionError, attention_implementation, trains_faster_unfused
from policies.head_blocks import Rotation, from_blocks, parts_from_blocks, parts_to_blocks, to_blocks
from policies.packed_rows import PackedRows
from policies.plain_attention import plain_attention
from policies.shared_prefix import SharedPrefixBatch

_Blocks = tuple[Tensor, Tensor]
"""Keys and values, in blocks of the same shape."""
_NAME = "rlhf_shared_prefix"
_FOREIGN_OPTIONS = ("sliding_window", "softcap", "s_aux", "position_bias")


def supports_shared_prefix(model: PreTrainedModel) -> bool:
    """Whether a decoder dispatches attention as transformers' own do, and every layer attends causally to all before.

    Sliding windows, linear attention, soft caps and learned or linear biases are not covered.
    """
    config = model.config.get_text_config()
    layer_types = getattr(config, "layer_types", None) or []
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return (
        bool(getattr(model, "_supports_attention_backend", False))
        and set(layer_types) <= {"full_attention"}
        and not slides
        and getattr(config, "attn_logit_softcapping", None) is None
        and getattr(config, "is_causal", True)
    )


@contextmanager
def shared_prefix_attention(model: PreTrainedModel) -> Iterator[None]:
    """In this context the layers take a packed row, which has no mask, and know it by `packing`.

    That is `model(batch.input_ids, position_ids=batch.position_ids, packing=batch, use_cache=False)`: transformers
    builds no mask for an attention function that it does not know.
    """
    with attention_implementation(model, _NAME):
        yield


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packing: SharedPrefixBatch | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, H, L, d) queries, (1, H_kv, L, d) keys and values -> (1, L, H, d).

    Raises:
        UnsupportedAttentionError: the layer lost the layout.
    """
    if packing is None:
        raise UnsupportedAttentionError(f"{type(module).__name__} does not hand on how rows are packed")
    assert attention_mask is None, "transformers builds no mask for this function"
    assert dropout == 0.0, "dropout is off in every model of this project"
    foreign = [name for name in _FOREIGN_OPTIONS if options.get(name) is not None]
    assert not foreign, f"{type(module).__name__} asks for {foreign}, which supports_shared_prefix should have refused"
    # Autocast leaves rotated queries and keys in float32.
    q, k, v = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    scale = scaling or query.shape[-1] ** -0.5
    if trains_faster_unfused(v.device, v.dtype, packing.longest):
        return shared_prefix_products(q, k, v, rotation=None, batch=packing, scale=scale)[None], None
    return _fused(q, k, v, packing, scale)[None], None


AttentionInterface.register(_NAME, _attend)


def shared_prefix_products(
    query: Tensor, key: Tensor, value: Tensor, *, rotation: Rotation | None, batch: SharedPrefixBatch, scale: float
) -> Tensor:
    """softmax(scale * Q K^T + mask) V by batched products, scores and probabilities in the precision of the inputs.

    Args:
        query: (L, query heads, head size).
        key: (L, heads, head size).
        value: (L, heads, head size).
        rotation: Turns queries and keys; None where they have been turned.
        batch: Who attends to whom.
        scale: Factor of the scores.

    Returns:
        (L, query heads, head size).
    """
    groups, parts = query.shape[1] // key.shape[1], _parts(batch)
    queries = parts_to_blocks(query, parts, groups=groups, rotation=rotation)
    of_prefixes, of_rests = _keys_and_values(key, value, rotation, batch)
    attended: list[Tensor] = []
    if of_prefixes is not None:
        width = batch.prefixes.width
        future = torch.full((1, width, width), -torch.inf, dtype=query.dtype).triu(diagonal=1).repeat(1, groups, 1)
        attended.append(plain_attention(queries[0], *of_prefixes, future, scale=scale))
    mask = batch.rest_mask(query.dtype).repeat(1, groups, 1)
    earlier = _before_each(of_prefixes, batch)
    attended.append(plain_attention(queries[-1], *of_rests, mask, scale=scale, earlier=earlier))
    return parts_from_blocks(attended, parts, groups=groups)


def last_token_products(
    query: Tensor, key: Tensor, value: Tensor, *, rotation: Rotation | None, batch: SharedPrefixBatch, scale: float
) -> Tensor:
    """`shared_prefix_products` for the last token of each sequence, and 0 for all others: what a final layer needs."""
    groups, last = query.shape[1] // key.shape[1], batch.last_index
    of_prefixes, of_rests = _keys_and_values(key, value, rotation, batch)
    alone = PackedRows(len(last), 1, 1, None, None)
    turn = None if rotation is None else (rotation[0][last], rotation[1][last])
    blocks = to_blocks(query.index_select(0, last), alone, groups=groups, rotation=turn)
    mask = batch.last_mask(query.dtype).expand(-1, groups, -1)
    attended = plain_attention(blocks, *of_rests, mask, scale=scale, earlier=_before_each(of_prefixes, batch))
    return torch.zeros_like(query).index_copy(0, last, from_blocks(attended, alone, groups=groups))


def _keys_and_values(
    key: Tensor, value: Tensor, rotation: Rotation | None, batch: SharedPrefixBatch
) -> tuple[_Blocks | None, _Blocks]:
    """Those of the prefixes, if there are any, and those of the rests, in blocks."""
    parts = _parts(batch)
    blocks = list(zip(parts_to_blocks(key, parts, rotation=rotation), parts_to_blocks(value, parts), strict=True))
    return blocks[0] if len(blocks) > 1 else None, blocks[-1]


def _parts(batch: SharedPrefixBatch) -> list[PackedRows]:
    return [rows for rows in (batch.prefixes, batch.rests) if rows.token_count]


def _before_each(prefixes: _Blocks | None, batch: SharedPrefixBatch) -> _Blocks | None:
    """(heads * G, P, d) keys and values: one for all rests of a group, or, where groups differ in size, for each."""
    if prefixes is None or batch.group_size is not None:
        return prefixes
    keys, values = (
        states.unflatten(0, (-1, batch.prefixes.rows)).index_select(1, batch.group_of_sequence).flatten(0, 1)
        for states in prefixes
    )
    return keys, values


def _fused(query: Tensor, key: Tensor, value: Tensor, batch: SharedPrefixBatch, scale: float) -> Tensor:
    """(L, H, d) queries, (L, H_kv, d) keys and values -> (L, H, d) by torch's attention."""
    (query_of_prefix, query_of_rest), keys, values = (_padded_parts(states, batch) for states in (query, key, value))
    outputs: list[Tensor] = []
    if batch.prefixes.token_count:
        attended = _block_attention(query_of_prefix, keys[0], values[0], None, scale)
        outputs.append(batch.prefixes.gather(attended.flatten(0, 1)))
        keys, values = (
            (states[0], torch.cat([batch.of_each_sequence(states[0]), states[1]], dim=1)) for states in (keys, values)
        )
    mask = batch.rest_mask(query.dtype)[:, None]
    attended = _block_attention(query_of_rest, keys[1], values[1], mask, scale)
    outputs.append(batch.rests.gather(attended.flatten(0, 1)))
    return torch.cat(outputs)


def _padded_parts(states: Tensor, batch: SharedPrefixBatch) -> tuple[Tensor, Tensor]:
    """(L, H, d) -> (G, P, H, d) of the prefixes and (S, R, H, d) of the rests, 0 in the slots of no token."""
    prefix, rest = states.split(batch.parts)
    return _slots(prefix, batch.prefixes), _slots(rest, batch.rests)


def _slots(tokens: Tensor, rows: PackedRows) -> Tensor:
    return rows.spread(tokens).unflatten(0, (rows.rows, rows.width))


def _block_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(N, Q, H, d) queries on (N, T, H_kv, d) keys -> (N, Q, H, d); causal without a mask."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return attended.transpose(1, 2)
