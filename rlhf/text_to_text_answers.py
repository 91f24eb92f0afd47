"""Answers of an encoder-decoder: to the prompts of `rlhf generate`, and to the questions of tasks.

Owns the translation between prompts and completions, as the other stages know them, and inputs and targets.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from policies.config import ModelConfig
from policies.encoder_decoder import EncoderDecoder
from policies.sequences import TokenIds
from policies.tokenization import decode
from rollout.config import SamplingConfig
from rollout.noise import keyed_generator
from rollout.types import Completion, PerToken, Prompt, RolloutBatch

_BATCH = 32
_DECODERS_ONLY = {
    "model": ("dtype", "quantization", "attention", "eos_token", "pad_token"),
    "sampling": ("min_response_tokens", "stop_token_ids"),
}
"""Settings of `rlhf generate` that an encoder-decoder has no use for yet."""


def require_answerable(model: ModelConfig, sampling: SamplingConfig) -> None:
    """Refuses settings that an encoder-decoder would not follow.

    Raises:
        ValueError: naming the first one.
    """
    for section, config in (("model", model), ("sampling", sampling)):
        for field in _DECODERS_ONLY[section]:
            value, default = getattr(config, field), type(config).model_fields[field].default
            if value != default:
                raise ValueError(
                    f"{section}.{field}={value!r}: model.path={model.path!r} is an encoder-decoder, which does not "
                    f"follow it; leave it at {default!r}"
                )


class AnsweringEncoderDecoder:
    """An encoder-decoder behind the calls that `rlhf.evaluation.task_scores` makes."""

    def __init__(self, model: EncoderDecoder) -> None:
        self._model = model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return self._model.tokenizer

    @property
    def context_tokens(self) -> int:
        """Longest input, and longest target."""
        return self._model.context_tokens

    @torch.no_grad()
    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """(R,) log-probs of given targets, nats."""
        found: list[PerToken] = []
        for start in range(0, len(prompts), _BATCH):
            inputs = [self._ended(ids) for ids in prompts[start : start + _BATCH]]
            targets = responses[start : start + _BATCH]
            values = self._model.target_logprobs(inputs, targets)[0].float().cpu().numpy()
            found += [values[row, : len(target)].copy() for row, target in enumerate(targets)]
        return found

    def sample(self, prompts: Sequence[Prompt], sampling: SamplingConfig, *, seed: int) -> RolloutBatch:
        """An answer to every prompt; a stop string ends it, as its last token."""
        return RolloutBatch(prompts, self.generate(prompts, [0] * len(prompts), sampling, seed=seed))

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], sampling: SamplingConfig, *, seed: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index, which together with the seed name its noise."""
        completions: list[Completion] = []
        for start in range(0, len(prompts), _BATCH):
            part, indices = prompts[start : start + _BATCH], response_indices[start : start + _BATCH]
            noise = keyed_generator("text to text", seed, f"{part[0].id}/{indices[0]}").integers(2**31)
            answers = self._model.generate(
                [self._ended(prompt.token_ids) for prompt in part],
                max_tokens=sampling.max_response_tokens,
                temperature=sampling.temperature,
                seed=int(noise),
            )
            completions += [
                self._completion(prompt, index, ids, logprobs, sampling)
                for prompt, index, (ids, logprobs) in zip(part, indices, answers, strict=True)
            ]
        return completions

    def _completion(
        self, prompt: Prompt, index: int, ids: TokenIds, logprobs: PerToken, sampling: SamplingConfig
    ) -> Completion:
        stop = self._stop(ids, sampling.stop_strings)
        ended = stop < len(ids) or int(ids[-1]) == self.tokenizer.eos_token_id
        reason = "stop" if ended else "length"
        return Completion(prompt.id, index, ids[:stop].astype(np.int32), logprobs[:stop], reason, 0)

    def _stop(self, ids: TokenIds, stop_strings: Sequence[str]) -> int:
        for length in range(1, len(ids) + 1) if stop_strings else ():
            if any(text in decode(ids[:length], self.tokenizer) for text in stop_strings):
                return length
        return len(ids)

    def _ended(self, ids: TokenIds) -> TokenIds:
        return np.array([*ids, self.tokenizer.eos_token_id], dtype=np.int32)
