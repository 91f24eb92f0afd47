"""What is measured about a rollout beside its time: the work it is, the machine's limits, and the log-prob error."""

from typing import Any

import numpy as np
import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from tests.benchmarks.machine_limits import matmul_flops, memory_bandwidth
from tests.benchmarks.rollout_contenders import Sampled
from tests.benchmarks.rollout_workload import (
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    PROMPT_TOKENS,
    VOCABULARY,
    prompts,
    response_lengths,
)

_LAYER_WEIGHTS = 4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE
_BFLOAT16_BYTES = 2


def work(kind: str) -> dict[str, float]:
    """Floating-point operations of the matrix products, and bytes of keys and values that single tokens must read."""
    lengths = response_lengths(kind)
    # The first response token comes out of the prompt's own pass.
    passes = len(lengths) * PROMPT_TOKENS + int((lengths - 1).sum())
    columns = sum(PROMPT_TOKENS + position for length in lengths for position in range(1, length))
    return {
        "flops": 2.0 * (passes * LAYERS * _LAYER_WEIGHTS + int(lengths.sum()) * HIDDEN * VOCABULARY),
        "bytes": float(columns * LAYERS * 2 * HIDDEN * _BFLOAT16_BYTES),
    }


def limits() -> dict[str, Any]:
    """Of this machine, now."""
    return {"matmul_flops": matmul_flops(torch.bfloat16), "memory_bandwidth": memory_bandwidth()}


def largest_logprob_error(backbone: Backbone, kind: str, sampled: Sampled) -> float | None:
    """Largest difference in nats from what the learner computes of the same tokens; None where none are reported."""
    if sampled.logprobs is None:
        return None
    policy = CausalPolicy(backbone, adapter=None, temperature=1.0)
    asked = [prompt.token_ids for prompt in prompts(kind)]
    expected = policy.response_logprobs(asked, sampled.responses, token_budget=2048)
    pairs = zip(sampled.logprobs, expected, strict=True)
    return max(float(np.abs(received - learners).max()) for received, learners in pairs)
