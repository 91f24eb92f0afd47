"""The engine on transformers' `generate`: the reference for correctness, and what runs without a GPU.

Owns left padding, the draw of every token and its log-probability, and the way back from a padded batch to
completions. It holds no weights: model and adapter are the `Backbone`'s, which learner and other roles may share.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from policies.causal import CausalPolicy
from policies.loading import Backbone
from policies.sequences import evaluate_in_micro_batches
from rollout.config import HfEngineConfig, SamplingConfig
from rollout.kv_cache import preallocated_cache
from rollout.noise import uniforms
from rollout.sampler import ForcedSampler
from rollout.types import Completion, PerToken, Prompt, TokenIds

Job = tuple[Prompt, int]
"""A prompt and the index of one response to it."""

_CANARY_TOKENS = 8192
"""Padded tokens of one forward pass over given sequences."""


class NonFiniteLogitsError(RuntimeError):
    """The policy gives no distribution any more: its logits hold NaN or infinity."""


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
        self._adapter = adapter
        self._sampling = sampling
        self._engine = engine
        self._version = version
        self._policy = CausalPolicy(backbone, adapter=adapter, temperature=sampling.temperature)
        self._stop_ids = _stop_ids(sampling, backbone)
        self._generation_config = GenerationConfig(
            max_new_tokens=sampling.max_response_tokens,
            do_sample=False,
            eos_token_id=list(self._stop_ids),
            pad_token_id=backbone.pad_id,
        )

    @property
    def version(self) -> int:
        """Number of the policy it samples from."""
        return self._version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index, in that order.

        Jobs of similar prompt length are decoded together; the samples don't depend on it.

        Raises:
            ValueError: if a prompt and the longest response don't fit into the model's context together.
            NonFiniteLogitsError: if the policy's logits hold NaN.
        """
        self._require_fit(prompts)
        jobs = list(zip(prompts, response_indices, strict=True))
        shortest_first = sorted(range(len(jobs)), key=lambda index: len(jobs[index][0].token_ids))
        size = self._engine.batch_size_responses
        completions: dict[int, Completion] = {}
        with self._decoding():
            for start in range(0, len(jobs), size):
                group = shortest_first[start : start + size]
                sampled = self._sample([jobs[index] for index in group], seed, step)
                completions.update(zip(group, sampled, strict=True))
        return [completions[index] for index in range(len(jobs))]

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Overwrites the policy's weights: the adapter's, or all of the model's where there is no adapter.

        Raises:
            ValueError: if names or shapes are not those of the policy.
        """
        self._policy.load_weights(tensors)
        self._version = version

    def adopt_version(self, version: int) -> None:
        """Takes a new version whose weights the learner has written into this backbone."""
        self._version = version

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) in nats of given responses at the sampling temperature, by a plain forward pass."""
        return evaluate_in_micro_batches(
            lambda batch: self._policy.logprobs(batch).logprobs,
            prompts,
            responses,
            token_budget=_CANARY_TOKENS,
            pad_id=self._backbone.pad_id,
            device=self._backbone.device,
        )

    @contextmanager
    def _decoding(self) -> Iterator[None]:
        """The model as the sampler needs it: the policy's adapter on, merged where that loses no precision."""
        adapters = self._backbone.adapters
        is_exact = self._backbone.model.dtype == torch.float32
        activated = adapters.merged if self._engine.merge_adapter and is_exact else adapters.use
        with activated(self._adapter), _without_own_sampling(self._backbone.model):
            yield

    def _require_fit(self, prompts: Sequence[Prompt]) -> None:
        longest, context = self._sampling.max_response_tokens, self._backbone.context_tokens
        for prompt in prompts:
            if len(prompt.token_ids) + longest > context:
                raise ValueError(
                    f"prompt {prompt.id!r} has {len(prompt.token_ids)} tokens; with max_response_tokens={longest} it "
                    f"exceeds the model's context of {context} tokens: lower max_prompt_tokens or max_response_tokens"
                )

    def _sample(self, jobs: Sequence[Job], seed: int, step: int) -> list[Completion]:
        """Decodes one batch."""
        device = self._backbone.device
        input_ids, attention_mask = _left_pad([prompt.token_ids for prompt, _ in jobs], self._backbone.pad_id)
        sampler = ForcedSampler(_noise(jobs, seed, step, self._sampling).to(device), self._sampling, self._stop_ids)
        width = input_ids.shape[1]
        # `generate` is untyped on PreTrainedModel.
        output = cast(Any, self._backbone.model).generate(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask.to(device),
            generation_config=self._generation_config,
            logits_processor=LogitsProcessorList([sampler]),
            past_key_values=preallocated_cache(self._backbone.model.config, width + self._sampling.max_response_tokens),
        )
        responses = output[:, width:].cpu().numpy().astype(np.int32)
        logprobs = sampler.logprobs[: responses.shape[1]].T.cpu().numpy()
        return [self._completion(job, responses[row], logprobs[row]) for row, job in enumerate(jobs)]

    def _completion(self, job: Job, response: NDArray[np.int32], logprobs: NDArray[np.float32]) -> Completion:
        """Cuts a padded row of (R,) behind its first stop token."""
        prompt, response_index = job
        stops = np.flatnonzero(np.isin(response, self._stop_ids))
        length = int(stops[0]) + 1 if stops.size else len(response)
        if not np.isfinite(logprobs[:length]).all():
            raise NonFiniteLogitsError(
                f"prompt {prompt.id!r}: the policy's logits are not finite at version {self._version}; its weights "
                "hold NaN or infinity: go back to an earlier checkpoint and lower the learning rate"
            )
        return Completion(
            prompt_id=prompt.id,
            response_index=response_index,
            # Copies, because a view would keep the whole padded batch alive.
            token_ids=response[:length].copy(),
            logprobs=logprobs[:length].copy(),
            finish_reason="stop" if stops.size else "length",
            policy_version=self._version,
        )


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


def _stop_ids(sampling: SamplingConfig, backbone: Backbone) -> tuple[int, ...]:
    if sampling.stop_token_ids is None:
        return (cast(int, backbone.tokenizer.eos_token_id),)
    for token_id in sampling.stop_token_ids:
        if not 0 <= token_id < backbone.vocabulary_size:
            raise ValueError(
                f"sampling.stop_token_ids holds {token_id}; the model's tokens are 0 to "
                f"{backbone.vocabulary_size - 1}: remove or correct it"
            )
    return sampling.stop_token_ids


def _left_pad(prompts: Sequence[TokenIds], pad_id: int) -> tuple[Tensor, Tensor]:
    """(B, P) ids and mask with the prompts flush right; `generate` derives positions from the mask."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = np.full((len(prompts), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        attention_mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def _noise(jobs: Sequence[Job], seed: int, step: int, sampling: SamplingConfig) -> Tensor:
    """(R, B, 1) uniforms of the jobs."""
    rows = [uniforms(seed, step, prompt.id, index, sampling.max_response_tokens) for prompt, index in jobs]
    return torch.from_numpy(np.stack(rows, axis=1)).unsqueeze(-1)
