"""Attention in a packed row: each prefix to itself, each rest to its group's prefix and to itself, all causally.

Owns the attention function that transformers calls, when it is in force, and which models it is exact for. The layout
of the row is `policies.shared_prefix`.

Linear layers and norms see every token once and no padding; only attention, a small part of the work at these lengths,
pads to blocks and repeats the keys of a prefix for each of its rests.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from policies.attention import attention_implementation, trains_faster_unfused
from policies.shared_prefix import SharedPrefixBatch

_NAME = "rlhf_shared_prefix"
_FOREIGN_OPTIONS = ("sliding_window", "softcap", "s_aux", "position_bias")


class _Forward:
    """One forward pass: its batch, and the mask that its layers share."""

    def __init__(self, batch: SharedPrefixBatch) -> None:
        self.batch = batch
        self._mask: Tensor | None = None

    def mask(self, dtype: torch.dtype) -> Tensor:
        """(S or 1, 1, R, P + R) additive mask of the rests: their prefix without its padding, themselves causally."""
        if self._mask is None or self._mask.dtype != dtype:
            visible = _visible(self.batch)
            self._mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._mask.masked_fill_(~visible, -torch.inf)
        return self._mask


_forward: ContextVar[_Forward] = ContextVar("_forward")


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
def shared_prefix_attention(model: PreTrainedModel, batch: SharedPrefixBatch) -> Iterator[None]:
    """In this context `model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)` is exact.

    Without a mask: transformers builds none for an attention function that it does not know.
    """
    token = _forward.set(_Forward(batch))
    try:
        with attention_implementation(model, _NAME):
            yield
    finally:
        _forward.reset(token)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """(1, H, L, d) queries, (1, H_kv, L, d) keys and values -> (1, L, H, d)."""
    assert attention_mask is None, "transformers builds no mask for this function"
    assert dropout == 0.0, "dropout is off in every model of this project"
    foreign = [name for name in _FOREIGN_OPTIONS if options.get(name) is not None]
    assert not foreign, f"{type(module).__name__} asks for {foreign}, which supports_shared_prefix should have refused"
    forward = _forward.get()
    batch = forward.batch
    # Autocast leaves rotated queries and keys in float32.
    heads = [states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value)]
    (query_of_prefix, query_of_rest), keys, values = (_split(states, batch) for states in heads)
    scale = scaling or query.shape[-1] ** -0.5
    parts: list[Tensor] = []
    if batch.prefix_tokens:
        parts.append(batch.prefixes.from_block(_block_attention(query_of_prefix, keys[0], values[0], None, scale)))
        keys, values = (_behind_its_prefix(states, batch) for states in (keys, values))
    mask = forward.mask(query_of_rest.dtype)
    parts.append(batch.rests.from_block(_block_attention(query_of_rest, keys[1], values[1], mask, scale)))
    return torch.cat(parts)[None], None


AttentionInterface.register(_NAME, _attend)


def _split(states: Tensor, batch: SharedPrefixBatch) -> tuple[Tensor, Tensor]:
    """(L, H, d) -> blocks (G, P, H, d) of the prefixes and (S, R, H, d) of the rests."""
    prefix, rest = states.split([batch.prefix_tokens, states.shape[0] - batch.prefix_tokens])
    return batch.prefixes.to_block(prefix), batch.rests.to_block(rest)


def _behind_its_prefix(blocks: tuple[Tensor, Tensor], batch: SharedPrefixBatch) -> tuple[Tensor, Tensor]:
    """Blocks of prefixes and rests -> the same, the rests as (S, P + R, H, d) behind their group's prefix."""
    prefix, rest = blocks
    return prefix, torch.cat([batch.of_each_sequence(prefix), rest], dim=1)


def _visible(batch: SharedPrefixBatch) -> Tensor:
    """(S or 1, 1, R, P + R) bool, True where a token of a rest sees one of its prefix or of itself."""
    device = batch.input_ids.device
    columns, rows = torch.arange(batch.prefixes.width, device=device), torch.arange(batch.rests.width, device=device)
    lengths = batch.prefixes.lengths[:1] if batch.prefixes.is_even else batch.prefixes.lengths[batch.group_of_sequence]
    prefix = (columns < lengths[:, None])[:, None, :].expand(-1, len(rows), -1)
    own = (rows <= rows[:, None]).expand(len(lengths), -1, -1)
    return torch.cat([prefix, own], dim=2)[:, None]


def _block_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """(N, Q, H, d) queries on (N, T, H_kv, d) keys -> (N, Q, H, d); causal without a mask."""
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    if trains_faster_unfused(query.device, query.dtype, key.shape[2]):
        return _unfused(query, key, value, mask, scale).transpose(1, 2)
    attended = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return attended.transpose(1, 2)


def _unfused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    if mask is None:
        size = (query.shape[2], key.shape[2])
        mask = torch.full(size, -torch.inf, dtype=query.dtype, device=query.device).triu(diagonal=1)
    return cast(Tensor, _PlainAttention.apply(query * scale, key, value, mask))


class _PlainAttention(torch.autograd.Function):
    """softmax(q k^T + mask) v with one (..., Q, T) tensor kept for the backward pass, in the precision of the inputs.

    With P the softmax and G the gradient by the output: dv = P^T G, dS = P * (G v^T - rowsum(P * G v^T)), dq = dS k,
    dk = dS^T q. torch's softmax of bfloat16 computes in float32 and rounds once, so nothing is lost by not asking for
    a float32 copy.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        attention = torch.matmul(query, key.transpose(2, 3)).add_(mask).softmax(dim=-1)
        ctx.save_for_backward(query, key, value, attention)
        return torch.matmul(attention, value)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, attention = cast(tuple[Tensor, ...], ctx.saved_tensors)
        by_value = torch.matmul(attention.transpose(2, 3), gradient)
        by_attention = torch.matmul(gradient, value.transpose(2, 3))
        by_logits = cast(Any, torch)._softmax_backward_data(by_attention, attention, -1, attention.dtype)
        return torch.matmul(by_logits, key), torch.matmul(by_logits.transpose(2, 3), query), by_value, None
