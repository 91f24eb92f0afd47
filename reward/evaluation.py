"""How well scores agree with a ranking: accuracy with its interval, margin, loss.

Owns the statistics on given scores. It runs no model; the loss that trains is `rlhf.algorithms.preference_losses`, and
agrees with the one here on the same scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.preferences import Comparison

Array = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class PairEvaluation:
    """Agreement of scores with comparisons, averaged over the pairs of a comparison, then over comparisons.

    Attributes:
        accuracy: Share of pairs in which the winner has the higher score; a tie counts one half.
        accuracy_low: Lower end of the 95 % bootstrap interval over comparisons.
        accuracy_high: Upper end.
        margin: Mean of winner's minus loser's score, in units of the scores.
        loss: Mean of -log sigmoid(winner - loser), nats.
        comparisons: How many.
        pairs: How many, over all comparisons.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    margin: float
    loss: float
    comparisons: int
    pairs: int


def evaluate_scores(
    comparisons: Sequence[Comparison], scores: NDArray[np.floating[Any]], *, seed: int = 0, resamples: int = RESAMPLES
) -> PairEvaluation:
    """Compares scores with what people preferred.

    The interval resamples comparisons, not pairs: the pairs of one comparison share responses and are not independent.

    Args:
        comparisons: At least one.
        scores: (S,) one score for each response of each comparison, in their order.
        seed: Seed of the bootstrap.
        resamples: Bootstrap resamples.

    Raises:
        ValueError: if there is no comparison, or the number of scores is not that of the responses.
    """
    responses = sum(len(comparison.responses) for comparison in comparisons)
    if not comparisons or len(scores) != responses:
        raise ValueError(
            f"{len(scores)} scores for {responses} responses; give one score for each response, and at least one"
        )
    gaps = _score_gaps(comparisons, np.asarray(scores, dtype=np.float64))
    accuracies = np.array([np.mean(0.5 * (1.0 + np.sign(gap))) for gap in gaps], dtype=np.float64)
    low, high = bootstrap_interval(accuracies, seed=seed, resamples=resamples)
    return PairEvaluation(
        accuracy=float(accuracies.mean()),
        accuracy_low=low,
        accuracy_high=high,
        margin=float(np.mean([gap.mean() for gap in gaps])),
        loss=float(np.mean([np.logaddexp(0.0, -gap).mean() for gap in gaps])),
        comparisons=len(comparisons),
        pairs=sum(len(gap) for gap in gaps),
    )


def bootstrap_interval(values: Array, *, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of independent values."""
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _score_gaps(comparisons: Sequence[Comparison], scores: Array) -> list[Array]:
    """Winner's minus loser's score of each pair, for each comparison."""
    gaps: list[Array] = []
    start = 0
    for comparison in comparisons:
        winners, losers = np.array(comparison.pairs()).T
        gaps.append(scores[start + winners] - scores[start + losers])
        start += len(comparison.responses)
    return gaps
