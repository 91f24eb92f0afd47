"""Rows of unlike length as one packed row: every layer computes real tokens only, attention alone sees rows apart.

Owns the layout, the attention function that transformers' layers call with it, and a third-party quirk: torch's fused
attention on a CPU does not use the bfloat16 instructions in its backward pass, which takes three times as long as the
matrix products of `causal_products` at 128 tokens. Remove that function when it does (torch 2.13).
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

from policies.round_sizes import round_places, round_size

PACKED = "packed_rows"
"""Name by which transformers knows `attend`: forward passes then take ids of (1, N) and `packing=PackedRows`."""
_LONGEST_PRODUCT = 256
"""Tokens up to which the plain products are worth the (T, T) probabilities they keep for the backward pass."""
_SCORES_AT_A_TIME = 2**19
"""Float32 scores that exist at the same time, 2 MiB: all at once take twice as long, most of it for fresh memory."""
_HARMLESS = {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions"}
"""What layers hand on to their attention function without meaning anything else than causal attention."""


class UnsupportedAttentionError(RuntimeError):
    """The layers ask for more than causal attention: a window, a soft cap, sinks, a bias."""


@dataclass(frozen=True, slots=True)
class PackedRows:
    """M right-padded rows of T tokens, of which N are computed, in M rows of W slots for attention.

    Attributes:
        rows: M.
        tokens: T.
        width: W, T or a little more.
        places: (N,) places of the tokens in the flattened (M * T,); None where N is M * T.
        slots: (N,) slots of the tokens in the flattened (M * W,); None where N is M * W.
        layers: Identities of the attention layers that have kept these rows apart.
    """

    rows: int
    tokens: int
    width: int
    places: Tensor | None
    slots: Tensor | None
    layers: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, mask: Tensor) -> "PackedRows":
        """The layout of an (M, T) mask that is True at real tokens; unlike rows are brought to round sizes.

        Of the padding, what fills N is computed with the tokens: it stands behind them, where no token sees it.
        """
        rows, tokens = mask.shape
        if bool(mask.all()):
            return cls(rows, tokens, tokens, None, None)
        width, places = round_size(tokens, mask.device), round_places(mask.reshape(-1))
        slots = places // tokens * width + places % tokens
        return cls(rows, tokens, width, _unless_all(places, mask.numel()), _unless_all(slots, rows * width))

    @property
    def slot_count(self) -> int:
        """S = M * W."""
        return self.rows * self.width

    def pack(self, padded: Tensor) -> Tensor:
        """(M, T, ...) -> (1, N, ...), the tokens of one row after another."""
        flat = padded.flatten(0, 1)
        return (flat if self.places is None else flat.index_select(0, self.places)).unsqueeze(0)

    def unpack(self, packed: Tensor) -> Tensor:
        """(1, N, ...) -> (M, T, ...), arbitrary at padding."""
        return _put_at(packed.squeeze(0), self.places, self.rows * self.tokens).unflatten(0, (self.rows, self.tokens))

    def gather(self, slots: Tensor) -> Tensor:
        """(S, ...) -> (N, ...), what stands in the slots of tokens."""
        return slots if self.slots is None else slots.index_select(0, self.slots)

    def spread(self, tokens: Tensor) -> Tensor:
        """(N, ...) -> (S, ...), 0 in the slots of no token."""
        return _put_at(tokens, self.slots, self.slot_count)


def _unless_all(places: Tensor, count: int) -> Tensor | None:
    return None if len(places) == count else places


def _put_at(tokens: Tensor, places: Tensor | None, count: int) -> Tensor:
    """(N, ...) -> (count, ...), 0 elsewhere; the tokens themselves where they are all."""
    if places is None:
        return tokens
    return tokens.new_zeros(count, *tokens.shape[1:]).index_copy(0, places, tokens)


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
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if multiplies_plainly(query, packing):
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


def multiplies_plainly(states: Tensor, rows: PackedRows) -> bool:
    """Whether `causal_products` is faster than torch's attention."""
    return states.device.type == "cpu" and states.dtype == torch.bfloat16 and rows.width <= _LONGEST_PRODUCT


def causal_products(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    rotation: tuple[Tensor, Tensor] | None,
    rows: PackedRows,
    scale: float,
) -> Tensor:
    """softmax(scale * Q K^T + causal mask) V of each row by batched products; scores and softmax in float32.

    Args:
        query: (N, query heads, head size).
        key: (N, heads, head size).
        value: (N, heads, head size).
        rotation: (N, head size) cosines and sines of a rotary embedding (Su et al. 2021) that turns queries and keys
            on their way into the layout of the products; None where they have been turned.
        rows: Where rows begin and end.
        scale: Factor of the scores.

    Returns:
        (N, query heads, head size).
    """
    cos, sin = (None, None) if rotation is None else rotation
    return cast(Tensor, _CausalProducts.apply(query, key, value, cos, sin, rows, scale))


class _CausalProducts(torch.autograd.Function):
    """See `causal_products`. Query heads that share a key-value head are rows of one product."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor | None,
        sin: Tensor | None,
        rows: PackedRows,
        scale: float,
    ) -> Tensor:
        rotation = None if cos is None or sin is None else (rows.spread(cos), rows.spread(sin))
        q, k = (_heads_first(rows.spread(states), rotation) for states in (query, key))
        v = _heads_first(rows.spread(value), None)
        groups = query.shape[1] // key.shape[1]
        q, k, v = _by_row(q, rows, groups), _by_row(k, rows, 1), _by_row(v, rows, 1)
        future = torch.full((rows.width, rows.width), -math.inf).triu(1).repeat(groups, 1)
        probabilities, output = q.new_empty(*q.shape[:2], rows.width), torch.empty_like(q)
        for part in _parts(probabilities):
            scores = torch.baddbmm(future, q[part].float(), k[part].float().transpose(1, 2), alpha=scale)
            probabilities[part] = torch.softmax(scores, dim=-1)
            torch.bmm(probabilities[part], v[part], out=output[part])
        ctx.save_for_backward(q, k, v, probabilities, *(rotation or ()))
        ctx.rows, ctx.scale, ctx.groups = rows, scale, groups
        return rows.gather(_tokens_first(output, rows, groups, None))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor
    ) -> tuple[Any, ...]:
        q, k, v, probabilities, *turned = cast(tuple[Tensor, ...], ctx.saved_tensors)
        rows, scale, groups = cast(PackedRows, ctx.rows), ctx.scale, ctx.groups
        by_output = _by_row(_heads_first(rows.spread(gradient), None), rows, groups)
        by_value = torch.bmm(probabilities.transpose(1, 2), by_output)
        by_probability = torch.bmm(by_output, v.transpose(1, 2))
        by_score = cast(Any, torch)._softmax_backward_data(by_probability, probabilities, -1, v.dtype)
        by_query, by_key = torch.bmm(by_score, k).mul_(scale), torch.bmm(by_score.transpose(1, 2), q).mul_(scale)
        # Turning back is turning by the transposed matrix.
        back = (turned[0], -turned[1].roll(turned[1].shape[-1] // 2, -1)) if turned else None
        by_states = (
            _tokens_first(by_query, rows, groups, back),
            _tokens_first(by_key, rows, 1, back),
            _tokens_first(by_value, rows, 1, None),
        )
        return *(rows.gather(by) for by in by_states), None, None, None, None


def _parts(probabilities: Tensor) -> list[slice]:
    """Products whose float32 scores stay in a processor's cache."""
    step = max(1, _SCORES_AT_A_TIME // probabilities[0].numel())
    return [slice(start, start + step) for start in range(0, len(probabilities), step)]


def _heads_first(states: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """(S, heads, size) -> (heads, S, size), turned on the way."""
    result = states.new_empty(states.shape[1], states.shape[0], states.shape[2])
    _put(states, rotation, into=result.transpose(0, 1))
    return result


def _tokens_first(states: Tensor, rows: PackedRows, groups: int, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
    """(heads * M, groups * T, size) -> (S, heads * groups, size), turned on the way."""
    size = states.shape[-1]
    heads_first = (
        states.view(-1, rows.rows, groups, rows.width, size).transpose(1, 2).reshape(-1, rows.slot_count, size)
    )
    result = states.new_empty(rows.slot_count, heads_first.shape[0], size)
    _put(heads_first.transpose(0, 1), rotation, into=result)
    return result


def _by_row(states: Tensor, rows: PackedRows, groups: int) -> Tensor:
    """(heads * groups, S, size) -> (heads * M, groups * T, size)."""
    apart = states.view(-1, groups, rows.rows, rows.width, states.shape[-1]).transpose(1, 2)
    return apart.reshape(-1, groups * rows.width, states.shape[-1])


def _put(states: Tensor, rotation: tuple[Tensor, Tensor] | None, *, into: Tensor) -> None:
    """(S, heads, size) as they are, or x cos + (-second half of x, first half of x) sin."""
    if rotation is None:
        into.copy_(states)
        return
    half = states.shape[-1] // 2
    (first, second), (to_first, to_second) = states.split(half, -1), into.split(half, -1)
    (cos_first, cos_second), (sin_first, sin_second) = (angles[:, None].split(half, -1) for angles in rotation)
    torch.mul(first, cos_first, out=to_first).addcmul_(second, sin_first, value=-1)
    torch.mul(second, cos_second, out=to_second).addcmul_(first, sin_second)


AttentionInterface.register(PACKED, cast(Any, attend))
