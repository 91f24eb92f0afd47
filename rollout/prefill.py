"""Prompts -> their keys, values and last hidden states, each distinct prompt once.

Owns the order (longest first), the buckets and their right padding. Where the result is kept belongs to the caller.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from policies.backbone import Backbone
from policies.sequences import micro_batches
from rollout.responses import OpenResponse
from rollout.slot_cache import LayerStates
from rollout.types import TokenIds


@dataclass(frozen=True, slots=True)
class PrefilledPrompt:
    """One row of a bucket.

    Attributes:
        layers: Keys and values of the whole bucket, by layer.
        row: Which row of them.
        tokens: P, tokens of the prompt, and the virtual ones before it; what stands behind them in the row is padding.
        state: (D,) hidden state that predicts the first response token.
    """

    layers: Sequence[LayerStates]
    row: int
    tokens: int
    state: Tensor


def prefilled(
    backbone: Backbone, responses: Sequence[OpenResponse], *, token_budget: int
) -> Iterator[tuple[OpenResponse, PrefilledPrompt]]:
    """Every response beside its prefilled prompt, the longest prompts first; a bucket is read when it is needed.

    Args:
        backbone: The model, with what adapter is active.
        responses: What is to be answered; equal prompts share one row.
        token_budget: Padded tokens of one bucket.
    """
    groups = by_prompt(responses)
    prompts = [group[0].prompt.token_ids for group in groups]
    for bucket in micro_batches([len(prompt) for prompt in prompts], token_budget):
        for index, prompt in zip(bucket, read_prompts(backbone, [prompts[index] for index in bucket]), strict=True):
            yield from ((response, prompt) for response in groups[index])


def by_prompt(responses: Sequence[OpenResponse]) -> list[list[OpenResponse]]:
    """The responses to equal prompts together, in the order of their first ones."""
    groups: dict[bytes, list[OpenResponse]] = {}
    for response in responses:
        groups.setdefault(response.prompt.token_ids.tobytes(), []).append(response)
    return list(groups.values())


def read_prompts(backbone: Backbone, prompts: Sequence[TokenIds]) -> list[PrefilledPrompt]:
    """One forward pass over a bucket, right-padded: causal attention keeps the padding away without a mask."""
    lengths = [len(prompt) for prompt in prompts]
    input_ids = np.full((len(prompts), max(lengths)), backbone.pad_id, dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, : lengths[row]] = prompt
    # Without the model's config every layer of it keeps all tokens: a sliding window would keep the padding.
    cache = DynamicCache()
    # Of the last layer, other tokens need keys and values alone: with eight layers this leaves out a tenth of the pass.
    last = torch.zeros(input_ids.shape, dtype=torch.bool)
    last[torch.arange(len(prompts)), torch.tensor(lengths) - 1] = True
    hidden = backbone.hidden_states(
        torch.from_numpy(input_ids).to(backbone.device), None, cache=cache, read=last.to(backbone.device)
    )
    layers = [cast(LayerStates, (layer.keys, layer.values)) for layer in cast(list[DynamicLayer], cache.layers)]
    virtual = backbone.virtual_tokens
    return [
        PrefilledPrompt(layers, row, virtual + length, hidden[row, length - 1]) for row, length in enumerate(lengths)
    ]
