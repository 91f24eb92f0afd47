"""Attention layers of the Llama family on packed rows, with fewer passes over queries, keys and values.

Owns one third-party quirk: transformers turns queries and keys by their rotary embedding in ten operations on
transposed tensors, and projects to queries, keys and values one by one. Here the projections share what they can
(`policies.lora_linear`), and the rotation writes straight into the layout of the products
(`policies.packed_attention`). Remove this file when transformers' layers do (transformers 5.23).
"""

from functools import cache
from typing import Any, cast

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention

from policies.lora_linear import joint_products
from policies.packed_attention import PackedRows, causal_products, multiplies_plainly

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
        rows = settings.get("packing")
        if not isinstance(rows, PackedRows) or not multiplies_plainly(hidden_states, rows):
            return super().forward(hidden_states, **settings)
        cos, sin = (angles[0] for angles in settings["position_embeddings"])
        assert cos.shape[-1] == self.head_dim, "layers of these kinds turn whole heads"
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (
            states[0].unflatten(-1, (-1, self.head_dim)) for states in joint_products(hidden_states, projections)
        )
        output = causal_products(query, key, value, rotation=(cos, sin), rows=rows, scale=self.scaling)
        rows.layers.add(id(self))
        return self.o_proj(output.flatten(1)[None]), None
