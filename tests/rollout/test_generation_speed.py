"""What a rollout costs beside plain `generate`: CPU time of one thread, so that a busy machine distorts it little."""

import sys
import time
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.config import ArchitectureConfig, LoraTuning
from policies.loading import random_backbone
from rollout.config import CompiledEngineConfig, HfEngineConfig, SamplingConfig
from rollout.engines import build_generator
from rollout.types import Prompt

RESPONSES, RESPONSE_TOKENS, ROUNDS = 64, 24, 8
SAMPLING = SamplingConfig(max_response_tokens=RESPONSE_TOKENS, min_response_tokens=RESPONSE_TOKENS)


@pytest.mark.benchmark
@pytest.mark.timeout(600)
@pytest.mark.parametrize("adapter", [None, "policy"])
def test_a_rollout_is_not_slower_than_plain_sampling_with_generate(
    tiny_tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str], adapter: str | None
) -> None:
    architecture = ArchitectureConfig(hidden_size=128, layers=4, heads=4)
    backbone = random_backbone(architecture, tiny_tokenizer, seed=0)
    if adapter is not None:
        backbone.adapters.add(adapter, LoraTuning(rank=16), seed=0)
    prompts = [
        Prompt(str(i), "", np.random.default_rng(i).integers(3, 300, 16 - i % 8).astype(np.int32))
        for i in range(RESPONSES)
    ]
    hf = build_generator(backbone, adapter, SAMPLING, HfEngineConfig())
    compiled = build_generator(backbone, adapter, SAMPLING, CompiledEngineConfig())

    seconds = _race(
        {
            "generate(do_sample=True)": lambda: _plain_generate(backbone, adapter, prompts),
            "hf": lambda: hf.generate(prompts, [0] * RESPONSES, seed=0, step=0),
            "compiled": lambda: compiled.generate(prompts, [0] * RESPONSES, seed=0, step=0),
        }
    )

    with capsys.disabled():
        for name, value in seconds.items():
            sys.stdout.write(f"\n{name}, adapter {adapter}: {RESPONSES * RESPONSE_TOKENS / value:,.0f} tokens/s")
    assert seconds["hf"] < 1.1 * seconds["generate(do_sample=True)"]
    assert seconds["compiled"] < seconds["hf"]


def _plain_generate(backbone: Backbone, adapter: str | None, prompts: list[Prompt]) -> None:
    """What a user would write; it returns no log-probabilities."""
    width = max(len(prompt.token_ids) for prompt in prompts)
    input_ids = torch.tensor([[0] * (width - len(p.token_ids)) + p.token_ids.tolist() for p in prompts])
    settings = GenerationConfig(
        max_new_tokens=RESPONSE_TOKENS, min_new_tokens=RESPONSE_TOKENS, do_sample=True, top_k=0, pad_token_id=0
    )
    with backbone.adapters.use(adapter):
        cast(Any, backbone.model).generate(
            input_ids=input_ids, attention_mask=input_ids.ne(0).long(), generation_config=settings
        )


def _race(contestants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Shortest CPU time of each, taken in turns after a warm-up, seconds."""
    for run in contestants.values():
        run()
    seconds = dict.fromkeys(contestants, float("inf"))
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds
