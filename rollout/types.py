"""The vocabulary of a rollout: prompts, completions and the batch that carries them between roles.

Owns plain data only: ragged lists of 1-D numpy arrays that travel between processes unpadded. It holds no torch
tensor and no padding; both exist only inside a micro-batch (`policies.sequences`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rollout.config import ResponseLimits

TokenIds = NDArray[np.int32]
PerToken = NDArray[np.float32]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, tokenized once by the driver.

    Attributes:
        id: Stable identity within the data set; seeds the sampling noise together with seed, step and response index.
        text: What a person wrote, rendered (chat template applied), without special tokens added by the tokenizer.
        token_ids: (P,) ids the policy is conditioned on, beginning-of-sequence included where the tokenizer adds it.
        fields: The other columns of the row that JSON can hold, for reward functions (`answer`, ...).
        limits: Where responses to it end, in place of the run's own limits; None means the run's. The temperature is
            common to all prompts, because the learner recomputes log-probabilities at one.
    """

    id: str
    text: str
    token_ids: TokenIds
    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    limits: ResponseLimits | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response with its provenance.

    Attributes:
        prompt_id: `Prompt.id` it answers.
        response_index: 0..G-1 among the responses of its prompt; counts on where a step holds the prompt more than
            once.
        token_ids: (R,) response ids; the stop token that ended it is included.
        logprobs: (R,) behavior log-probabilities in nats, at the sampling temperature, of exactly `token_ids`.
        finish_reason: "stop" when a stop token was sampled, "length" when the token budget ended it.
        policy_version: Version of the weights that sampled it.
    """

    prompt_id: str
    response_index: int
    token_ids: TokenIds
    logprobs: PerToken
    finish_reason: FinishReason
    policy_version: int

    @property
    def is_truncated(self) -> bool:
        """True when the token budget, not a stop token, ended the response."""
        return self.finish_reason == "length"


@dataclass(frozen=True, slots=True)
class PromptFailure:
    """Responses that could not be generated; they are missing, never made up.

    Attributes:
        prompt_id: `Prompt.id`.
        responses: How many.
        reason: What was raised, by type and words.
    """

    prompt_id: str
    responses: int
    reason: str


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """B completions beside the prompts they answer; `prompts[i]` belongs to `completions[i]` (prompts repeat G times).

    Example with G = 2: prompts = [p0, p0, p1, p1], completions = [c00, c01, c10, c11].

    Attributes:
        prompts: (B,) one for each completion.
        completions: (B,) what was sampled.
        failures: What is missing.
    """

    prompts: Sequence[Prompt]
    completions: Sequence[Completion]
    failures: Sequence[PromptFailure] = ()

    def __post_init__(self) -> None:
        if len(self.prompts) != len(self.completions):
            raise ValueError(
                f"RolloutBatch: {len(self.prompts)} prompts for {len(self.completions)} completions; repeat each "
                "prompt per response"
            )

    def __len__(self) -> int:
        return len(self.completions)
