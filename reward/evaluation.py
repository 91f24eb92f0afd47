"""How well scores agree with a ranking: accuracy with its interval, margin, loss, and the lead over another model.

Owns the flattening of comparisons into scored pairs, which every other measurement starts from. It runs no model; the
loss that trains is `rlhf.algorithms.preference_losses`, and agrees with the one here on the same scores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.intervals import Array, Indices, MeanDifference, mean_difference, share_interval
from reward.preferences import Comparison


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Every pair of some comparisons that is not a tie, with its scores, flat.

    Attributes:
        gap: (Q,) winner's minus loser's score.
        target: (Q,) probability that the winner wins: 1, or less where the label is a share of votes.
        strength: (Q,) how much better the labels say the winner is, in their units; NaN where only the order is known.
        weight: (Q,) one over the pairs of its comparison, so that each comparison has the same say.
        cluster: (Q,) which prompt; comparisons without one are clusters of their own.
        winner: (Q,) index of the better response, counted over all comparisons.
        loser: (Q,) index of the worse one.
    """

    gap: Array
    target: Array
    strength: Array
    weight: Array
    cluster: Indices
    winner: Indices
    loser: Indices

    @property
    def correct(self) -> Array:
        """(Q,) 1 where the winner has the higher score, 0 where it has the lower, one half where they are equal."""
        return 0.5 * (1.0 + np.sign(self.gap))

    @property
    def agreement(self) -> Array:
        """(Q,) probability that people prefer what the model prefers; `correct` where every label is certain."""
        return 0.5 + np.sign(self.gap) * (self.target - 0.5)

    def loss(self, temperature: float = 1.0) -> float:
        """Mean of -t log sigmoid(gap / temperature) - (1 - t) log sigmoid(-gap / temperature), t the target; nats."""
        logits = self.gap / temperature
        return self.mean(np.logaddexp(0.0, -logits) + (1.0 - self.target) * logits)

    def where(self, chosen: NDArray[np.bool_]) -> "ScoredPairs":
        """Some of the pairs, with the weights that they have among all; their prompts are counted anew."""
        return ScoredPairs(
            gap=self.gap[chosen],
            target=self.target[chosen],
            strength=self.strength[chosen],
            weight=self.weight[chosen],
            cluster=np.unique(self.cluster[chosen], return_inverse=True)[1],
            winner=self.winner[chosen],
            loser=self.loser[chosen],
        )

    def mean(self, values: Array) -> float:
        """Mean over the pairs of a comparison, then over comparisons."""
        return float(np.average(values, weights=self.weight))


@dataclass(frozen=True, slots=True)
class PairEvaluation:
    """Agreement of scores with comparisons, averaged over the pairs of a comparison, then over comparisons.

    Attributes:
        accuracy: Share of pairs in which the winner has the higher score; a tie counts one half.
        accuracy_low: Lower end of the 95 % interval over prompts (`reward.intervals.share_interval`).
        accuracy_high: Upper end.
        margin: Mean of winner's minus loser's score, in units of the scores.
        loss: Mean of -log sigmoid(winner - loser), nats; cross-entropy where labels are shares of votes.
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


def score_pairs(comparisons: Sequence[Comparison], scores: NDArray[np.floating[Any]]) -> ScoredPairs:
    """Flattens comparisons.

    Args:
        comparisons: At least one.
        scores: (S,) one score for each response of each comparison, in their order.

    Raises:
        ValueError: if there is no comparison, the number of scores is not that of the responses, one is not finite, or
            all responses tie.
    """
    counts = np.array([len(comparison.responses) for comparison in comparisons], dtype=np.int64)
    if not comparisons or len(scores) != counts.sum():
        raise ValueError(
            f"{len(scores)} scores for {counts.sum()} responses; give one score for each response, and at least one"
        )
    if bad := int(np.sum(~np.isfinite(scores))):
        raise ValueError(f"{bad} of {len(scores)} scores are not finite, so nothing can be measured; check the model")
    pairs = [np.array(comparison.pairs(), dtype=np.int64).reshape(-1, 2) for comparison in comparisons]
    per_comparison = np.array([len(found) for found in pairs])
    if not per_comparison.any():
        raise ValueError(f"all {len(comparisons)} comparisons are ties, so there is nothing to agree with; add others")
    comparison = np.repeat(np.arange(len(comparisons)), per_comparison)
    winner, loser = (np.concatenate(pairs) + (counts.cumsum() - counts)[comparison][:, None]).T
    values = np.asarray(scores, dtype=np.float64)
    strengths = np.concatenate([_strengths(comparison) for comparison in comparisons])
    return ScoredPairs(
        gap=values[winner] - values[loser],
        target=np.array([found.win_probability for found in comparisons])[comparison],
        strength=strengths[winner] - strengths[loser],
        weight=1.0 / per_comparison[comparison],
        cluster=np.unique(prompt_clusters(comparisons)[comparison], return_inverse=True)[1],
        winner=winner,
        loser=loser,
    )


def _strengths(comparison: Comparison) -> Array:
    unknown = np.full(len(comparison.responses), np.nan)
    return unknown if comparison.strengths is None else np.array(comparison.strengths, dtype=np.float64)


def prompt_clusters(comparisons: Sequence[Comparison]) -> Indices:
    """(C,) number of each comparison's prompt, in order of appearance; one without a prompt has its own."""
    numbers: dict[object, int] = {}
    keys = (comparison.prompt or (place,) for place, comparison in enumerate(comparisons))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def evaluate_scores(comparisons: Sequence[Comparison], scores: NDArray[np.floating[Any]]) -> PairEvaluation:
    """Compares scores with what people preferred; see `score_pairs` for the arguments and what is refused."""
    pairs = score_pairs(comparisons, scores)
    low, high = share_interval(pairs.correct, pairs.weight, pairs.cluster)
    return PairEvaluation(
        accuracy=pairs.mean(pairs.correct),
        accuracy_low=low,
        accuracy_high=high,
        margin=pairs.mean(pairs.gap),
        loss=pairs.loss(),
        comparisons=len(comparisons),
        pairs=len(pairs.gap),
    )


def accuracy_difference(
    comparisons: Sequence[Comparison],
    scores: NDArray[np.floating[Any]],
    other: NDArray[np.floating[Any]],
    *,
    seed: int,
) -> MeanDifference:
    """Accuracy of `scores` minus accuracy of `other` on the same comparisons, with a paired interval."""
    pairs = score_pairs(comparisons, scores)
    gain = pairs.correct - score_pairs(comparisons, other).correct
    return mean_difference(gain, pairs.weight, pairs.cluster, seed=seed)
