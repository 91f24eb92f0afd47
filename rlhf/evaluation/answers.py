"""Models answer the same held-out prompts with the same noise, and judges that score read the answers.

Owns what is common to all models of an evaluation; a comparison of two is `win_rates` and `comparing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward.interface import RewardFn, RewardOutput
from rlhf.evaluation.models import LoadedModel
from rlhf.requests import reward_requests
from rollout.config import SamplingConfig
from rollout.types import Prompt, RolloutBatch


@dataclass(frozen=True, slots=True)
class Answers:
    """What one model said to the prompts, and what the judges thought of it.

    Attributes:
        batch: Prompts and completions; the completions carry the model's own log-probs.
        texts: Decoded responses.
        reward: Scores (B,), components by judge.
        perplexity: On held-out text; None without any.
    """

    batch: RolloutBatch
    texts: Sequence[str]
    reward: RewardOutput
    perplexity: float | None

    @property
    def prompt_ids(self) -> list[str]:
        """(B,) the prompt of each answer."""
        return [prompt.id for prompt in self.batch.prompts]

    @property
    def lengths(self) -> NDArray[np.float64]:
        """(B,) tokens of each answer."""
        return np.array([len(completion.token_ids) for completion in self.batch.completions], np.float64)


class Evaluator:
    """The fixed side of a comparison: prompts, judges, held-out text and sampling noise, the same for every model.

    Args:
        prompts: What is asked.
        judge: Scores the answers.
        sampling: How models answer.
        texts: Held-out text for perplexity; may be empty.
        seed: Seed of the sampling noise, common to all models.
        responses_per_prompt: G, answers of each model to each prompt.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        judge: RewardFn,
        *,
        sampling: SamplingConfig,
        texts: Sequence[str],
        seed: int,
        responses_per_prompt: int = 1,
    ) -> None:
        self._prompts, self._judge, self._sampling, self._texts = prompts, judge, sampling, texts
        self._seed, self._responses_per_prompt = seed, responses_per_prompt

    def answer(self, model: LoadedModel, *, seed: int | None = None) -> Answers:
        """Lets a model answer every prompt, scores the answers and measures perplexity.

        Args:
            model: Who answers.
            seed: Seed of the noise in place of the common one, to compare a model with fresh samples of itself.
        """
        seed = self._seed if seed is None else seed
        batch = model.sample(self._prompts, self._sampling, seed=seed, responses_per_prompt=self._responses_per_prompt)
        return self._scored(model, batch, model.perplexity(self._texts))

    def more_answers(self, model: LoadedModel, count: int) -> Answers:
        """`count` further answers to each prompt, with noise of their own, scored; no perplexity."""
        batch = model.sample(
            self._prompts,
            self._sampling,
            seed=self._seed,
            responses_per_prompt=count,
            first_index=self._responses_per_prompt,
        )
        return self._scored(model, batch, None)

    def kl(self, answers: Answers, baseline: LoadedModel) -> float:
        """KL from the model that gave `answers` to `baseline`, nats per sequence.

        Mean over answers of the summed k1 estimate.
        """
        return float(np.mean(baseline.kl_of(answers.batch, self._sampling)))

    def _scored(self, model: LoadedModel, batch: RolloutBatch, perplexity: float | None) -> Answers:
        requests = reward_requests(batch, model.tokenizer)
        return Answers(batch, [request.response for request in requests], self._judge(requests), perplexity)
