"""Tiny random models and a tiny tokenizer, built from configs and never downloaded.

Apart from `fixtures_models`, because its imports are heavy.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from policies.adapters import AdapterSet
from policies.config import ArchitectureConfig
from policies.loading import random_backbone
from policies.sequences import SequenceBatch, pad_sequences
from policies.tokenization import train_tokenizer

_CORPUS = (
    "the small cat sat on the warm mat and looked at the rain",
    "a dog ran over the green hill to find the red ball",
    "user: where is the bird? assistant: the bird is in the tree.",
    "once there was a girl who liked to sing, and she sang all day.",
)

RAGGED = (([5, 6, 7], [8, 9]), ([10], [11, 12, 13, 14]), ([15, 16], [17]))
"""(prompt, response) ids of three sequences: prompts of 3, 1 and 2 tokens, responses of 2, 4 and 1."""


def build_tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of 300 tokens: pad 0, bos 1, eos 2."""
    return train_tokenizer(_CORPUS, vocabulary_size=300)


def write_llama(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """A random Llama: hidden 32, 2 layers, 4 heads, 2 key-value heads, context 64, tied embeddings, float32."""
    architecture = ArchitectureConfig(hidden_size=32, layers=2, heads=4, key_value_heads=2, context_tokens=64)
    backbone = random_backbone(architecture, tokenizer, seed=0)
    spread(backbone.model)
    backbone.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def build_model(architecture: str, vocabulary: int) -> PreTrainedModel:
    """A fresh random model of one architecture, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(_config(architecture, vocabulary), dtype=torch.float32)
    spread(model)
    return model.eval()


@torch.no_grad()
def spread(model: PreTrainedModel) -> None:
    """Adds seeded noise to every weight: the default initialisation is so small that mistakes do not show."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def ragged_batch(rows: tuple[int, ...] = (0, 1, 2), pad_id: int = 0) -> SequenceBatch:
    """Some of the `RAGGED` sequences as one micro-batch, in a given order."""
    prompts = [np.array(RAGGED[row][0], dtype=np.int32) for row in rows]
    responses = [np.array(RAGGED[row][1], dtype=np.int32) for row in rows]
    return pad_sequences(prompts, responses, pad_id=pad_id)


@torch.no_grad()
def randomize(adapters: AdapterSet, name: str, *, seed: int) -> None:
    """Gives an adapter weights that change its output; a new one has B = 0."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in adapters.parameters(name):
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


def _config(architecture: str, vocabulary: int) -> PreTrainedConfig:
    tokens = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    grouped = shape | {"num_key_value_heads": 2, "head_dim": 8}
    settings: dict[str, dict[str, Any]] = {
        "llama": grouped,
        "qwen2": grouped,
        "mistral": grouped | {"sliding_window": 8},
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "qwen3": grouped | {"tie_word_embeddings": True},
        "gpt_neox": shape,
        "gemma": grouped,
        "gemma2": grouped | {"sliding_window": 8, "final_logit_softcapping": 3.0},
    }
    return AutoConfig.for_model(architecture, **tokens, **settings[architecture])
