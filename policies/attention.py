"""Which attention implementation computes fastest, and the switch between them.

Owns the measured threshold, and the error of layers that the functions of this project cannot serve
(`policies.packed_attention`, `policies.shared_prefix_attention`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

LONGEST_UNFUSED_ATTENTION = 256
"""Tokens up to which plain attention trains faster than the fused kernel in bfloat16 on a CPU (1.4x at 128, 1.15x at
256, 0.7x at 512): the fused kernel's backward pass does not use the bfloat16 instructions."""


class UnsupportedAttentionError(RuntimeError):
    """The layers ask for more than causal attention: a window, a soft cap, sinks, a bias; or lose the layout."""


def trains_faster_unfused(device: torch.device, dtype: torch.dtype, tokens: int) -> bool:
    """Whether plain attention ("eager") beats the fused kernel for sequences of so many tokens."""
    return device.type == "cpu" and dtype == torch.bfloat16 and tokens <= LONGEST_UNFUSED_ATTENTION


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """In this context the layers of the model attend by the function of this name, if they let themselves be told.

    None keeps its own.
    """
    if name is None or not model._can_set_attn_implementation():
        yield
        return
    # Where layers look it up; `set_attn_implementation` would search all submodules for more at every pass.
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before
