"""The engine on transformers' `generate`: the reference for correctness.

Owns left padding and what `generate` is told. It holds no weights: model and adapter are the `Backbone`'s, which
learner and other roles may share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from policies.backbone import Backbone
from rollout.config import HfEngineConfig, SamplingConfig
from rollout.kv_cache import preallocated_cache
from rollout.responses import OpenResponse, ResponseFactory
from rollout.sampled_policy import SampledPolicy
from rollout.sampler import ForcedSampler
from rollout.types import Completion, PerToken, Prompt, TokenIds


class HfGenerator:
    """Samples with plain `generate` of transformers; a `rollout.generation.Generator`.

    `generate` only runs the loop: a logits processor draws each token from the policy at the sampling temperature by
    inverse CDF, with a uniform number that belongs to the response and the position, and forces it on the greedy
    search.

    Args:
        backbone: Model, tokenizer and adapters.
        adapter: Name of the policy's adapter; None samples from the bare model.
        sampling: Temperature, lengths and stop tokens.
        engine: Batch size and merging.
        version: Number of the policy whose weights the backbone holds.

    Raises:
        ValueError: if a stop token is no token of the model.
    """

    def __init__(
        self,
        backbone: Backbone,
        adapter: str | None,
        sampling: SamplingConfig,
        engine: HfEngineConfig,
        *,
        version: int = 0,
    ) -> None:
        self._backbone = backbone
        self._temperature = sampling.temperature
        self._batch_size = engine.batch_size_responses
        self._responses = ResponseFactory(sampling, backbone)
        self._policy = SampledPolicy(
            backbone,
            adapter,
            temperature=sampling.temperature,
            merge_adapter=engine.merge_adapter,
            version=version,
        )

    @property
    def version(self) -> int:
        """Number of the policy it samples from."""
        return self._policy.version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index, in that order.

        Jobs of similar prompt length are decoded together; the samples don't depend on it.

        Raises:
            ValueError: if a prompt and the longest response don't fit into the model's context together.
            NonFiniteLogitsError: if the policy's logits hold NaN.
        """
        responses = self._responses.open(prompts, response_indices, seed=seed, step=step)
        shortest_first = sorted(responses, key=lambda response: len(response.prompt.token_ids))
        model = self._backbone.model
        with self._policy.decoding(), _without_own_sampling(model), _one_output_weight(model):
            for start in range(0, len(responses), self._batch_size):
                self._sample(shortest_first[start : start + self._batch_size])
        return [response.completion(self.version) for response in responses]

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Overwrites the policy's weights: the adapter's, or all of the model's where there is no adapter.

        Raises:
            ValueError: if names or shapes are not those of the policy.
        """
        self._policy.load_weights(tensors, version=version)

    def adopt_version(self, version: int) -> None:
        """Takes a new version whose weights the learner has written into this backbone."""
        self._policy.version = version

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) in nats of given responses at the sampling temperature, by a plain forward pass."""
        return self._policy.logprobs(prompts, responses)

    def _sample(self, responses: Sequence[OpenResponse]) -> None:
        """Decodes one batch until all of its responses have ended."""
        model, device = self._backbone.model, self._backbone.device
        input_ids, attention_mask = _left_pad(
            [response.prompt.token_ids for response in responses], self._backbone.pad_id
        )
        longest = max(response.rules.max_tokens for response in responses)
        cache = preallocated_cache(model.config, self._backbone.virtual_tokens + input_ids.shape[1] + longest)
        self._backbone.fill_virtual_tokens(cache, len(responses))
        # `generate` takes what a cache holds for the beginning of its input.
        input_ids, attention_mask = _with_virtual_tokens(input_ids, attention_mask, self._backbone.virtual_tokens)
        # `generate` is untyped on PreTrainedModel.
        cast(Any, model).generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=GenerationConfig(
                max_new_tokens=longest, do_sample=False, pad_token_id=self._backbone.pad_id
            ),
            logits_processor=LogitsProcessorList([ForcedSampler(responses, self._temperature)]),
            stopping_criteria=StoppingCriteriaList([_ResponsesEnded(responses)]),
            past_key_values=cache,
        )


class _ResponsesEnded(StoppingCriteria):
    """Tells `generate` which rows are done; the responses know, because the sampler has just added to them."""

    def __init__(self, responses: Sequence[OpenResponse]) -> None:
        self._responses = responses

    def __call__(self, input_ids: Tensor, scores: tuple[Tensor] | None, **_kwargs: object) -> torch.BoolTensor:
        """(B,) True where the response has ended."""
        del scores  # the responses know their tokens
        ended = [response.finish_reason is not None for response in self._responses]
        return cast(torch.BoolTensor, torch.tensor(ended, device=input_ids.device))


@contextmanager
def _without_own_sampling(model: PreTrainedModel) -> Iterator[None]:
    """Hides the model's generation_config.json.

    `generate` fills every setting that a call leaves open from there (transformers 5.23,
    `_prepare_generation_config`), so a repetition penalty or a list of suppressed tokens would silently turn the
    samples off-policy.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


@contextmanager
def _one_output_weight(model: PreTrainedModel) -> Iterator[None]:
    """Hands the output layer contiguous states.

    Of a prompt, `generate` reads the last state alone, which is a slice; of slices `F.linear` on a CPU makes a batched
    product, for which it copies the (V, D) weight once for each row (torch 2.13).
    """

    def contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].contiguous(), *inputs[1:])

    hook = cast(nn.Module, model.get_output_embeddings()).register_forward_pre_hook(contiguous)
    try:
        yield
    finally:
        hook.remove()


def _left_pad(prompts: Sequence[TokenIds], pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, P) ids and mask with the prompts flush right; `generate` derives positions from the mask."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        attention_mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def _with_virtual_tokens(input_ids: Tensor, attention_mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Puts `count` tokens that count as real before every row; the cache holds them, so their ids are never read."""
    places = attention_mask.new_ones(len(input_ids), count)
    return torch.cat([places, input_ids], dim=1), torch.cat([places, attention_mask], dim=1)
