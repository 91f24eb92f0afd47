"""The engines of the rollout benchmark, each in the form a user would run it, on the common workload."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList

from policies.backbone import Backbone
from rlhf.process_environment import prepare_environment
from rollout.config import CompiledEngineConfig, HfEngineConfig, SamplingConfig
from rollout.engines import build_generator
from rollout.generation import Generator
from tests.benchmarks.rollout_workload import PROMPT_TOKENS, PROMPTS, RESPONSE_TOKENS, prompts, response_lengths

_PAGE_TOKENS = 128


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a contender made of the workload.

    Attributes:
        responses: Tokens of each response.
        logprobs: Their log-probabilities as the contender reports them, nats; None where it reports none.
    """

    responses: list[NDArray[np.int32]]
    logprobs: list[NDArray[np.float32]] | None

    @property
    def tokens(self) -> int:
        return sum(len(response) for response in self.responses)


Contender = Callable[[Backbone, str], Sampled]
"""(backbone, "fixed" or "ragged") -> responses of exactly the workload's lengths."""


def ours(engine: CompiledEngineConfig | HfEngineConfig) -> Contender:
    """An engine of this project, kept between calls and with the memory allocator set as in a run."""

    @cache
    def generator(backbone: Backbone) -> Generator:
        prepare_environment()
        return build_generator(backbone, None, SamplingConfig(max_response_tokens=RESPONSE_TOKENS), engine)

    def run(backbone: Backbone, kind: str) -> Sampled:
        completions = generator(backbone).generate(prompts(kind), [0] * PROMPTS, seed=0, step=0)
        return Sampled([c.token_ids for c in completions], [c.logprobs for c in completions])

    return run


class _PlannedEnds(StoppingCriteria):
    """Ends every row at its length, as an end-of-sequence token would."""

    def __init__(self, lengths: NDArray[np.int64]) -> None:
        self._lengths = torch.from_numpy(lengths)

    def __call__(self, input_ids: Tensor, scores: tuple[Tensor] | None, **_kwargs: object) -> torch.BoolTensor:
        del scores
        return cast(torch.BoolTensor, self._lengths <= input_ids.shape[1] - PROMPT_TOKENS)


def generate(backbone: Backbone, kind: str) -> Sampled:
    """`generate` of transformers with its default cache; it reports no log-probabilities."""
    input_ids = torch.tensor(np.stack([prompt.token_ids for prompt in prompts(kind)]), dtype=torch.long)
    lengths = response_lengths(kind)
    output = cast(Any, backbone.model).generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        generation_config=GenerationConfig(max_new_tokens=RESPONSE_TOKENS, do_sample=True, top_k=0, pad_token_id=0),
        stopping_criteria=StoppingCriteriaList([_PlannedEnds(lengths)]),
    )
    rows = output[:, PROMPT_TOKENS:].numpy().astype(np.int32)
    return Sampled([row[:length] for row, length in zip(rows, lengths, strict=True)], None)


def generate_batch(backbone: Backbone, kind: str) -> Sampled:
    """What `generate_batch` of transformers does, with a length for each request; its manager is kept between calls."""
    pages = -(-(PROMPT_TOKENS + RESPONSE_TOKENS) // _PAGE_TOKENS) * PROMPTS
    manager_of = cast(Any, backbone.model).continuous_batching_context_manager
    with manager_of(
        generation_config=GenerationConfig(
            max_new_tokens=RESPONSE_TOKENS, do_sample=True, top_k=0, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=_PAGE_TOKENS,
            num_blocks=pages + 2,
            max_batch_tokens=PROMPTS * PROMPT_TOKENS,
            allow_block_sharing=False,  # it would keep keys and values of old weights
            return_logprobs=True,
        ),
        persistent_manager=True,
        timeout=5,
    ) as manager:
        names = [
            manager.add_request(prompt.token_ids.tolist(), max_new_tokens=int(length))
            for prompt, length in zip(prompts(kind), response_lengths(kind), strict=True)
        ]
        return _collect(manager, names)


def _collect(manager: Any, names: Sequence[str]) -> Sampled:
    finished: dict[str, Any] = {}
    while len(finished) < len(names):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            if result.error is not None:
                raise RuntimeError(f"generate_batch: {result.error}")
            finished[result.request_id] = result
        elif result is None and not manager.is_running():
            raise RuntimeError("generate_batch stopped before its requests were done")
    results = [finished[name] for name in names]
    return Sampled(
        [np.array(result.generated_tokens, dtype=np.int32) for result in results],
        [np.array(result.logprobs, dtype=np.float32) for result in results],
    )


CONTENDERS: dict[str, Contender] = {
    "compiled": ours(CompiledEngineConfig()),
    "hf": ours(HfEngineConfig()),
    "generate": generate,
    "generate_batch": generate_batch,
}
