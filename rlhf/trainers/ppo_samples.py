"""Rows of a PPO run's sample table: the followed prompts, and the worst and longest responses of a step.

Owns the selection and the columns, which are the same for every row of a run. Where rows go is the sinks' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from reward.interface import RewardOutput, RewardRequest
from rlhf.algorithms.kl import kl_k1
from rollout.types import PerToken, RolloutBatch

SampleKind = Literal["fixed", "worst", "longest"]

SHOWN_OF_A_STEP = 3
"""Worst responses, and as many longest ones."""


@dataclass(frozen=True, slots=True)
class JudgedBatch:
    """B responses and what the other roles say of them.

    Attributes:
        batch: Prompts and completions.
        requests: Their texts, in order.
        reward: Scores and components, (B,) each.
        reference_logprobs: (R_i,) nats each.
    """

    batch: RolloutBatch
    requests: Sequence[RewardRequest]
    reward: RewardOutput
    reference_logprobs: Sequence[PerToken]

    def rows(self, kind: SampleKind, indices: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """A row for each response, or for those of `indices`: its texts, score, components, KL in nats and length."""
        chosen = range(len(self.requests)) if indices is None else indices
        return [self._row(kind, index) for index in chosen]

    def worst_and_longest(self) -> list[dict[str, Any]]:
        """The lowest scores, lowest first, and the most tokens, most first; a response may be both."""
        scores, lengths = self.reward.scores, [len(completion.token_ids) for completion in self.batch.completions]
        scored = np.flatnonzero(np.isfinite(scores)).tolist()
        worst = sorted(scored, key=lambda index: scores[index])[:SHOWN_OF_A_STEP]
        longest = sorted(range(len(lengths)), key=lambda index: -lengths[index])[:SHOWN_OF_A_STEP]
        return self.rows("worst", worst) + self.rows("longest", longest)

    def _row(self, kind: SampleKind, index: int) -> dict[str, Any]:
        request, completion = self.requests[index], self.batch.completions[index]
        components = self.reward.components.items()
        return {
            "kind": kind,
            "prompt_id": completion.prompt_id,
            "prompt": request.prompt,
            "response": request.response,
            "score": float(self.reward.scores[index]),
            **{f"reward/{name}": float(scores[index]) for name, scores in components},
            "kl": _summed_kl(completion.logprobs, self.reference_logprobs[index]),
            "response_tokens": len(completion.token_ids),
            "policy_version": completion.policy_version,
        }


def _summed_kl(logprobs: PerToken, reference_logprobs: PerToken) -> float:
    # Copies: arrays that come from a worker's shared memory cannot be written to, which torch warns of.
    return kl_k1(torch.tensor(logprobs), torch.tensor(reference_logprobs)).sum().item()
