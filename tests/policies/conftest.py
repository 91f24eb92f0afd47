"""Fixtures of the tests of `policies`: backbones and batches."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.adapters import AdapterSet
from policies.loading import Backbone
from policies.sequences import SequenceBatch, pad_sequences

RAGGED = (([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14]), ([15, 16], [17]))
"""(prompt, response) ids of three sequences in which no two lengths agree."""


@pytest.fixture
def backbone_of(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], Backbone]:
    """Builds a fresh backbone of an architecture."""
    return lambda architecture: Backbone(tiny_model(architecture), tiny_tokenizer)


@pytest.fixture
def backbone(backbone_of: Callable[[str], Backbone]) -> Backbone:
    """A fresh Llama backbone."""
    return backbone_of("llama")


@pytest.fixture
def batch() -> SequenceBatch:
    """The ragged sequences as one micro-batch."""
    return ragged_batch()


def ragged_batch(rows: tuple[int, ...] = (0, 1, 2), pad_id: int = 0) -> SequenceBatch:
    """Some of the ragged sequences, in a given order."""
    prompts = [np.array(RAGGED[row][0], dtype=np.int32) for row in rows]
    responses = [np.array(RAGGED[row][1], dtype=np.int32) for row in rows]
    return pad_sequences(prompts, responses, pad_id=pad_id)


@torch.no_grad()
def randomize(adapters: AdapterSet, name: str, seed: int) -> None:
    """Gives an adapter weights that change its output (a new one has B = 0)."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in adapters.parameters(name):
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
