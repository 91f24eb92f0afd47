# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# vllm is an optional extra, absent where types are checked.
"""vLLM as a contender of the rollout benchmark: its own sampler and compiler, as a user would run it.

Imported in an environment with vLLM only.
"""

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from policies.backbone import Backbone
from tests.benchmarks.rollout_contenders import Sampled
from tests.benchmarks.rollout_workload import CONTEXT_TOKENS, PROMPTS, prompts, response_lengths

# Read when vLLM is imported: one process, whose memory is measured, and its threads as they were set for all.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams


def vllm(backbone: Backbone, kind: str) -> Sampled:
    """`LLM.generate` with a length for each request; the engine is kept between calls, its prefix cache is not used."""
    requests = [
        SamplingParams(temperature=1.0, max_tokens=int(length), ignore_eos=True, logprobs=0, detokenize=False)
        for length in response_lengths(kind)
    ]
    inputs = [{"prompt_token_ids": prompt.token_ids.tolist()} for prompt in prompts(kind)]
    answers = [answer.outputs[0] for answer in _engine(backbone).generate(inputs, requests, use_tqdm=False)]
    return Sampled(
        [np.array(answer.token_ids, dtype=np.int32) for answer in answers],
        [
            np.array([step[token].logprob for step, token in zip(answer.logprobs, answer.token_ids, strict=True)])
            for answer in answers
        ],
    )


@cache
def _engine(backbone: Backbone) -> Any:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbone.model.save_pretrained(folder)
        return LLM(
            model=str(folder),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=CONTEXT_TOKENS,
            max_num_seqs=PROMPTS,
            enable_prefix_caching=False,
            disable_log_stats=True,
        )
