"""Requests -> normalised scores of a learned reward model.

Owns the hand-off (token ids where the policy shares the model's tokenizer, text otherwise), truncation, micro-batches
by token budget, and the turn of a non-finite score into a failure. The forward pass is `reward.model` or
`reward.shared_model`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policies.sequences import micro_batches, pad_texts
from policies.tokenization import tokenizer_fingerprint
from reward.config import LearnedModelConfig
from reward.encoding import ExchangeEncoder, TokenIds
from reward.interface import RewardFailure, RewardOutput, RewardRequest, Scores
from reward.normalization import Normalizer


class SequenceScorer(Protocol):
    """A reward model's forward pass."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer whose ids the model reads."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        ...

    @property
    def context_tokens(self) -> int:
        """Longest sequence that the model can read."""
        ...

    def raw_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(M, T) right-padded ids and their mask -> (M,) float32 scores, before normalisation."""
        ...


def score_sequences(scorer: SequenceScorer, sequences: Sequence[TokenIds], *, token_budget: int) -> Tensor:
    """(S,) float32 raw scores in the order of the sequences, with gradients where they are enabled.

    Sequences of similar length share a forward pass, so little is spent on padding.

    Args:
        scorer: the model.
        sequences: S arrays of at least two ids.
        token_budget: padded tokens of one forward pass.
    """
    groups = micro_batches([len(sequence) for sequence in sequences], token_budget)
    scores: list[Tensor] = []
    for group in groups:
        batch = pad_texts([sequences[i] for i in group], pad_id=_pad_id(scorer), device=scorer.device)
        scores.append(scorer.raw_scores(batch.input_ids, batch.attention_mask))
    place = torch.empty(len(sequences), dtype=torch.long)
    place[torch.tensor([index for group in groups for index in group])] = torch.arange(len(sequences))
    return torch.cat(scores)[place.to(scorer.device)]


class LearnedReward:
    """The reward function of a learned model.

    Args:
        scorer: The model.
        normalizer: Scale of its scores.
        source: What it is shown and how much at once.
        policy_fingerprint: `tokenizer_fingerprint` of the tokenizer that made the token ids of requests; None where
            they have none. Ids are used where it equals the model's own, text is encoded anew otherwise.
    """

    def __init__(
        self,
        scorer: SequenceScorer,
        normalizer: Normalizer,
        source: LearnedModelConfig,
        *,
        policy_fingerprint: str | None = None,
    ) -> None:
        self._scorer, self._normalizer, self._source = scorer, normalizer, source
        self._encoder = ExchangeEncoder(scorer.tokenizer)
        self._takes_ids = policy_fingerprint == tokenizer_fingerprint(scorer.tokenizer)
        self._max_tokens = min(source.max_tokens, scorer.context_tokens)

    def __call__(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        """Scores every request; see `reward.interface.RewardFn`. The component is named `model`."""
        sequences = [self._encode(request) for request in requests]
        readable = [index for index, sequence in enumerate(sequences) if len(sequence) > 1]
        scores = np.full(len(requests), np.nan, dtype=np.float32)
        scores[readable] = self._score([sequences[index] for index in readable])
        scores[~np.isfinite(scores)] = np.nan
        return RewardOutput(scores, {"model": scores}, _failures(sequences, scores))

    def _encode(self, request: RewardRequest) -> TokenIds:
        """At most `max_tokens` ids: the end is what was said last, so the beginning goes."""
        shows_prompt = self._source.reads == "prompt_and_response"
        if self._takes_ids and request.response_ids is not None and not (shows_prompt and request.prompt_ids is None):
            ids = self._encoder.from_ids(request.prompt_ids if shows_prompt else None, request.response_ids)
        else:
            ids = self._encoder.from_text(request.prompt if shows_prompt else "", request.response)
        return ids[-self._max_tokens :]

    @torch.no_grad()
    def _score(self, sequences: Sequence[TokenIds]) -> Scores:
        if not sequences:
            return np.empty(0, dtype=np.float32)
        raw = score_sequences(self._scorer, sequences, token_budget=self._source.micro_batch_tokens)
        return self._normalizer(raw.cpu().numpy())


def _failures(sequences: Sequence[TokenIds], scores: Scores) -> list[RewardFailure]:
    return [
        RewardFailure(
            index, "the exchange is empty" if len(sequences[index]) < 2 else "the model's score is not finite"
        )
        for index in np.flatnonzero(np.isnan(scores)).tolist()
    ]


def _pad_id(scorer: SequenceScorer) -> int:
    pad_id = scorer.tokenizer.pad_token_id
    assert isinstance(pad_id, int), "a tokenizer without a padding token is refused where it is loaded"
    return pad_id
