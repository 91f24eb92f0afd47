"""Outcomes of pairs of answers -> a mean over prompts with its 95 % interval.

Owns what a prompt weighs: once, however many answers it has. Who decides an outcome is the judges' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward.interface import Scores
from reward.intervals import bootstrap_interval

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over prompts with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def named(self, name: str) -> dict[str, float]:
        """`<name>`, `<name>_low` and `<name>_high`, as they stand in summary.json."""
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def win_rate(candidate: Scores, baseline: Scores, prompt_ids: Sequence[str], *, resamples: int, seed: int) -> Interval:
    """Mean over prompts of 1 (candidate higher), 0.5 (equal) or 0; see `score_gain` for the arguments."""
    return mean_over_prompts(score_outcomes(candidate, baseline), prompt_ids, resamples=resamples, seed=seed)


def score_gain(
    candidate: Scores, baseline: Scores, prompt_ids: Sequence[str], *, resamples: int, seed: int
) -> Interval:
    """Mean over prompts of candidate's minus baseline's score; the interval resamples prompts, not answers.

    Args:
        candidate: (B,) scores of the candidate's answers.
        baseline: (B,) scores of the baseline's answers to the same prompts, in the same order.
        prompt_ids: (B,) prompt of each answer; several answers to one prompt are not independent.
        resamples: Bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: if no answer was scored on both sides; an answer that either side lost (NaN) is left out.
    """
    return mean_over_prompts((candidate - baseline).astype(float), prompt_ids, resamples=resamples, seed=seed)


def score_outcomes(candidate: Scores, baseline: Scores) -> Array:
    """(B,) 1 where the candidate scores higher, 0.5 where both score the same, else 0; NaN where a score is missing."""
    outcomes = np.where(candidate == baseline, 0.5, (candidate > baseline).astype(float))
    return np.where(np.isfinite(candidate) & np.isfinite(baseline), outcomes, np.nan)


def mean_over_prompts(values: Array, prompt_ids: Sequence[str], *, resamples: int, seed: int) -> Interval:
    """Mean of the prompts' means, NaN left out.

    Raises:
        ValueError: if no value is finite.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt_id, value in zip(prompt_ids, values.tolist(), strict=True):
        if np.isfinite(value):
            by_prompt.setdefault(prompt_id, []).append(value)
    if not by_prompt:
        raise ValueError("reward: no prompt was scored for both models; a comparison needs at least one")
    means = np.array([np.mean(prompt_values) for prompt_values in by_prompt.values()], np.float64)
    low, high = bootstrap_interval(means, seed=seed, resamples=resamples)
    return Interval(float(means.mean()), low, high)
