"""What every engine is timed on: one model, one set of prompts, and how long each response is to be.

Shared by all rollout benchmarks, so it imports nothing of an engine.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from policies.backbone import Backbone
from rollout.config import ResponseLimits
from rollout.types import Prompt
from tests.tiny_models import build_tokenizer

KINDS = ("fixed", "ragged")
"""Whether responses are of one length."""
PROMPTS, PROMPT_TOKENS, RESPONSE_TOKENS = 64, 64, 64
SHORTEST_RESPONSE = 8
"""Ragged responses vary eightfold."""
END_PROBABILITY = 1 / 16
"""Chance of an end-of-sequence token at every position behind the shortest ragged response."""
HIDDEN, LAYERS, HEADS, INTERMEDIATE, VOCABULARY = 512, 8, 8, 1376, 8192
CONTEXT_TOKENS = 256


def llama_config() -> LlamaConfig:
    """29.5M parameters with tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )


def model(dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """Random weights, the same in every process."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(llama_config(), dtype=dtype).eval()


def backbone() -> Backbone:
    """The model with a tokenizer, which only lends its special tokens."""
    return Backbone(model(), build_tokenizer())


def response_lengths(kind: str) -> NDArray[np.int64]:
    """(64,) tokens of each response: all 64, or drawn as if an end-of-sequence token came with a fixed chance.

    Drawn once and the same for every engine, so that all do the same work; mean 22 in the ragged case.
    """
    if kind == "fixed":
        return np.full(PROMPTS, RESPONSE_TOKENS)
    ends = SHORTEST_RESPONSE - 1 + np.random.default_rng(0).geometric(END_PROBABILITY, PROMPTS)
    return np.minimum(ends, RESPONSE_TOKENS)


def prompts(kind: str) -> list[Prompt]:
    """64 prompts of 64 random tokens, each with the limits that give its response the length."""
    ids = np.random.default_rng(1).integers(3, VOCABULARY, (PROMPTS, PROMPT_TOKENS), dtype=np.int32)
    return [
        Prompt(str(row), "", ids[row], limits=ResponseLimits(min_response_tokens=length, max_response_tokens=length))
        for row, length in enumerate(response_lengths(kind).tolist())
    ]
