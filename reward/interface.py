"""The contract of everything that scores: requests in, scores and failures out.

Owns `RewardRequest`, `RewardOutput` and the `RewardFn` protocol. It knows neither models nor rules.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RewardRequest:
    """One (prompt, response) to score.

    Attributes:
        prompt: Prompt text.
        response: Response text, special tokens removed.
        prompt_ids: (P,) token ids of the policy's tokenizer; used by a reward model that shares that tokenizer.
        response_ids: (R,) token ids, end-of-sequence included when it was sampled.
        fields: Other columns of the data row, for rules (`answer`, ...).
    """

    prompt: str
    response: str
    prompt_ids: NDArray[np.int32] | None = None
    response_ids: NDArray[np.int32] | None = None
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """A request that got no score: its index in the batch and why. Never scored 0; the caller drops and counts it."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class RewardOutput:
    """Scores of one batch.

    Attributes:
        scores: (B,) float32; NaN exactly where `failures` names the index.
        components: Per source name, (B,) float32 before weighting; for logging. A single source has one component.
        failures: Requests without a score.
    """

    scores: Scores
    components: Mapping[str, Scores]
    failures: Sequence[RewardFailure] = ()


class RewardFn(Protocol):
    """Anything that scores a batch of responses. Scores must not depend on the order or the size of the batch."""

    def __call__(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        """Scores every request; a request that cannot be scored becomes a `RewardFailure`, not an exception."""
        ...
