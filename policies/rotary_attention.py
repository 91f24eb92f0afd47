"""Attention layers of the Llama family on packed rows, with fewer passes over queries, keys and values.

Owns one third-party quirk: transformers turns queries and keys by their rotary embedding in ten operations on
transposed tensors, and projects to queries, keys and values one by one. Here the projections share what they can
(`policies.lora_linear`), and the rotation writes straight into the blocks of the products (`policies.head_blocks`).
Remove this file when transformers' layers do (transformers 5.23).
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from policies.attention import trains_faster_unfused
from policies.final_layer import tokens_read_by
from policies.lora_linear import joint_products
from policies.packed_attention import causal_products
from policies.packed_rows import PackedRows
from policies.shared_prefix import SharedPrefixBatch
from policies.shared_prefix_attention import last_token_products, shared_prefix_products

_KINDS = (LlamaAttention, MistralAttention, Qwen2Attention)
"""Exact types: others normalise queries, rotate a part of them, or attend to a window."""


def use_fast_attention(model: nn.Module) -> None:
    """Gives the attention layers of `model` that are of a known kind the forward pass of this file on packed rows."""
    for layer in model.modules():
        if type(layer) in _KINDS and not _window(layer):
            cast(Any, layer).__class__ = _fast_class(type(layer))


def _window(layer: nn.Module) -> int | None:
    return getattr(layer, "sliding_window", getattr(layer.config, "sliding_window", None))


@cache
def _fast_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"Fast{kind.__name__}", (_FastForward, kind), {})


class _FastForward(nn.Module):
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    head_dim: int
    scaling: float

    def forward(self, hidden_states: Tensor, **settings: Any) -> tuple[Tensor, Tensor | None]:
        products = _products(settings.get("packing"), hidden_states, tokens_read_by(self.q_proj))
        if products is None:
            return super().forward(hidden_states, **settings)
        # Once for all three: autocast would do it for each.
        states = hidden_states.to(_precision(hidden_states))
        rotation = tuple(angles[0].to(states.dtype) for angles in settings["position_embeddings"])
        assert rotation[0].shape[-1] == self.head_dim, "layers of these kinds turn whole heads"
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (
            projected[0].unflatten(-1, (-1, self.head_dim)) for projected in joint_products(states, projections)
        )
        output = products(query, key, value, rotation=rotation, scale=self.scaling)
        if isinstance(settings["packing"], PackedRows):
            settings["packing"].layers.add(id(self))
        return self.o_proj(output.flatten(1)[None]), None


def _products(packing: object, hidden_states: Tensor, read: Tensor | None) -> Callable[..., Tensor] | None:
    """The attention of a layout, where plain products are the fastest; of the tokens that are read, or more."""
    if isinstance(packing, PackedRows):
        longest, products = packing.width, partial(causal_products, rows=packing)
    elif isinstance(packing, SharedPrefixBatch):
        of_layout = last_token_products if read is packing.last_index else shared_prefix_products
        longest, products = packing.longest, partial(of_layout, batch=packing)
    else:
        return None
    return products if trains_faster_unfused(hidden_states.device, _precision(hidden_states), longest) else None


def _precision(states: Tensor) -> torch.dtype:
    """Of the products of linear layers with `states`."""
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
