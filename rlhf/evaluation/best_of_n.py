"""What a model would reach by sampling n answers and keeping the one that a proxy scores highest.

Owns the estimate for many n from one set of samples. It is what reinforcement learning has to beat: it trains nothing,
and costs n times the sampling.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf.evaluation.win_rates import Interval, mean_over_prompts

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BestOfN:
    """The best of n answers.

    Attributes:
        n: Answers to choose from.
        kl_bound: See `kl_bound`, nats per answer.
        means: Mean of each measure over prompts, with its interval.
    """

    n: int
    kl_bound: float
    means: Mapping[str, Interval]


def kl_bound(n: int) -> float:
    """KL bound log n - (n - 1) / n, nats: what is commonly given as the KL from best-of-n to the model that samples.

    It is an upper bound, reached where no answer can come twice (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_n_weights(proxy: Array, n: int) -> Array:
    """(N,) probability that each of N samples is the best of n of them, drawn without replacement.

    The i-th lowest of N is the best of C(i - 1, n - 1) of the C(N, n) subsets, so that sum_i weight_i * value_i is the
    unbiased estimate of the best-of-n value (after Nakano et al. 2021). Samples of equal score share what
    they have, as if one of them were taken by lot.

    Args:
        proxy: (N,) scores by which the best is chosen.
        n: At most N.

    Raises:
        ValueError: n is above N.
    """
    count = len(proxy)
    if not 1 <= n <= count:
        raise ValueError(f"n={n} of {count} samples: there must be at least n")
    order = np.argsort(proxy, kind="stable")
    weights = np.empty(count)
    weights[order] = [math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)]
    _, groups, sizes = np.unique(proxy, return_inverse=True, return_counts=True)
    return (np.bincount(groups, weights) / sizes)[groups]


def best_of_n(
    proxy: Array,
    measures: Mapping[str, Array],
    prompt_ids: Sequence[str],
    counts: Sequence[int],
    *,
    resamples: int,
    seed: int,
) -> list[BestOfN]:
    """Every measure for the best of n, for each n.

    Args:
        proxy: (B,) scores by which the best is chosen; samples without one (NaN) cannot be chosen.
        measures: (B,) what each sample is worth, by name. A prompt that lost a measure of some sample (NaN) is left out
            of it, because the mean over the others would be of other answers.
        prompt_ids: (B,) prompt of each sample.
        counts: The n; a prompt with fewer samples than n is left out there.
        resamples: Bootstrap resamples, over prompts.
        seed: Seed of the resampling.

    Raises:
        ValueError: if no prompt is left.
    """
    prompts, groups = np.unique(prompt_ids, return_inverse=True)
    members = [np.flatnonzero((groups == index) & np.isfinite(proxy)) for index in range(len(prompts))]
    found: list[BestOfN] = []
    for n in counts:
        weights = [best_of_n_weights(proxy[rows], n) if len(rows) >= n else None for rows in members]
        means: dict[str, Interval] = {}
        for name, values in measures.items():
            by_prompt = np.array(
                [
                    math.nan if weight is None else float(weight @ values[rows])
                    for weight, rows in zip(weights, members, strict=True)
                ]
            )
            means[name] = mean_over_prompts(by_prompt, prompts.tolist(), resamples=resamples, seed=seed)
        found.append(BestOfN(n, kl_bound(n), means))
    return found


def outcomes_against(samples: Array, opponents: Array, sample_prompts: Sequence[str], prompts: Sequence[str]) -> Array:
    """(B,) share of the opponent's answers to the same prompt that each sample beats; ties count half.

    Args:
        samples: (B,) scores.
        opponents: (Q,) scores of the opponent's answers; NaN is left out.
        sample_prompts: (B,) prompt of each sample.
        prompts: (Q,) prompt of each of the opponent's answers.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt, score in zip(prompts, opponents.tolist(), strict=True):
        if math.isfinite(score):
            by_prompt.setdefault(prompt, []).append(score)
    return np.array(
        [
            _share_beaten(score, by_prompt.get(prompt, []))
            for prompt, score in zip(sample_prompts, samples.tolist(), strict=True)
        ],
        np.float64,
    )


def _share_beaten(score: float, others: Sequence[float]) -> float:
    if not others or not math.isfinite(score):
        return math.nan
    return sum((score > other) + 0.5 * (score == other) for other in others) / len(others)
