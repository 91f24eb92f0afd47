"""How sure a number is that was measured on comparisons: 95 % intervals that respect what was drawn together.

Owns the two kinds used here, a score interval for shares and the bootstrap for everything else, and when a difference
counts as found. Clusters count, not pairs: the pairs of one comparison share responses, the comparisons of one prompt
share the prompt.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

RESAMPLES = 2000
FEWEST_CLUSTERS_FOR_A_FINDING = 10
"""Below this the bootstrap has too little to resample, and no difference counts as found."""
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class MeanDifference:
    """A mean of paired differences, and whether it can be told from zero.

    Attributes:
        value: The mean.
        low: Lower end of its 95 % interval: paired bootstrap over clusters.
        high: Upper end.
        finding: "above" or "below" where the interval lies beside zero and there are at least
            `FEWEST_CLUSTERS_FOR_A_FINDING` clusters, else "undecided".
    """

    value: float
    low: float
    high: float
    finding: Literal["above", "below", "undecided"]


def share_interval(values: Array, weights: Array, clusters: Indices) -> tuple[float, float]:
    """95 % interval of the weighted mean p of values in [0, 1].

    Wilson's score interval (Wilson 1927) with the effective sample size n = p (1 - p) / Var(p), where Var(p) is the
    linearised variance between clusters, and Student's t for the normal quantile (the scheme of Korn and Graubard 1998,
    with Wilson's interval in place of the exact one). Unlike the bootstrap it stays honest at the ends: three right of
    three do not prove 100 %.

    Args:
        values: (Q,) in [0, 1].
        weights: (Q,) positive.
        clusters: (Q,) the cluster of each value, counted from 0 without gaps.
    """
    count = int(clusters.max()) + 1
    if count < 2:
        return 0.0, 1.0
    share = float(np.average(values, weights=weights))
    residuals = cluster_sums(weights * (values - share), clusters)
    variance = float(np.sum(residuals**2) / weights.sum() ** 2)
    # Without spread (all right, or all wrong) there is nothing to estimate it from: each cluster counts once.
    size = min(share * (1.0 - share) / variance, len(values)) if variance > 0 else count
    # Of Student's t, without scipy.stats, which takes 20 MiB of every process that trains.
    quantile = float(stdtrit(count - 1, 0.975))
    shrunk = 1.0 + quantile**2 / size
    centre = (share + quantile**2 / (2 * size)) / shrunk
    half = quantile * np.sqrt(share * (1.0 - share) / size + (quantile / (2 * size)) ** 2) / shrunk
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def bootstrap_interval(values: Array, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of independent values."""
    means = bootstrap_sums(values[:, None], seed=seed, resamples=resamples)[:, 0] / len(values)
    return quantile_interval(means)


def mean_difference(differences: Array, weights: Array, clusters: Indices, *, seed: int) -> MeanDifference:
    """Weighted mean of (Q,) differences of two things measured on the same pairs.

    Clusters are resampled with both measurements on them, so what is hard for both cancels; two intervals side by side
    would hide a real difference, or show one that is none.

    Args:
        differences: (Q,) first minus second.
        weights: (Q,) positive.
        clusters: (Q,) the cluster of each, counted from 0 without gaps.
        seed: Seed of the bootstrap.
    """
    sums = cluster_sums(np.stack([weights * differences, weights], axis=1), clusters)
    drawn = bootstrap_sums(sums, seed=seed)
    low, high = quantile_interval(drawn[:, 0] / drawn[:, 1])
    finding: Literal["above", "below", "undecided"] = "undecided"
    if len(sums) >= FEWEST_CLUSTERS_FOR_A_FINDING and not low <= 0 <= high:
        finding = "above" if low > 0 else "below"
    return MeanDifference(float(np.average(differences, weights=weights)), low, high, finding)


def quantile_interval(draws: Array) -> tuple[float, float]:
    """The middle 95 % of draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_sums(sums: Array, *, seed: int, resamples: int = RESAMPLES) -> Array:
    """(resamples, D) column sums over clusters drawn with replacement (Efron and Tibshirani 1993, chapter 6).

    A statistic of these sums, row by row, is that statistic's bootstrap distribution.

    Args:
        sums: (C, D) what each cluster adds.
        seed: Seed of the draws.
        resamples: Rows of the result.
    """
    generator, count = np.random.default_rng(seed), len(sums)
    rows_at_once = max(1, _DRAWS_AT_ONCE // count)
    blocks: list[Array] = []
    for start in range(0, resamples, rows_at_once):
        rows = min(rows_at_once, resamples - start)
        draws = generator.integers(0, count, size=(rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(draws.reshape(-1), minlength=rows * count).reshape(rows, count)
        blocks.append(times @ sums)
    return np.concatenate(blocks)


def cluster_sums(values: Array, clusters: Indices) -> Array:
    """(Q,) or (Q, D) values added up by cluster: (C,) or (C, D)."""
    sums = np.zeros((int(clusters.max()) + 1, *values.shape[1:]))
    np.add.at(sums, clusters, values)
    return sums
