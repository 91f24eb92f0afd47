"""How much a score has to do with the length of the response: what a reward model learns first, and PPO exploits first.

Owns the word count that stands for length here and in the length baseline, and correlations with it. Accuracy by
length difference is `reward.slices`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from reward.evaluation import ScoredPairs, score_pairs
from reward.intervals import Array, MeanDifference, mean_difference
from reward.preferences import Comparison


@dataclass(frozen=True, slots=True)
class LengthBias:
    """Scores against length; None where one of the two does not vary.

    Attributes:
        pearson: Correlation over all responses.
        spearman: Rank correlation over all responses, equal values with their mean rank.
        pearson_within: Correlation of deviations from the mean of the comparison, so that prompts that call for longer
            answers do not count.
        spearman_within: The same of ranks within the comparison.
        longer_preferred: Share of pairs of unequal length in which people preferred the longer response.
        longer_scored_higher: Share in which the model does; equal scores count one half.
        excess: The second minus the first, pair by pair: above zero, the model likes length more than people do.
        unequal_pairs: How many pairs that are.
    """

    pearson: float | None
    spearman: float | None
    pearson_within: float | None
    spearman_within: float | None
    longer_preferred: float | None
    longer_scored_higher: float | None
    excess: MeanDifference | None
    unequal_pairs: int


def word_counts(texts: Sequence[str]) -> Array:
    """(S,) number of words, parted by white space."""
    return np.array([len(text.split()) for text in texts], dtype=np.float64)


def measure_length_bias(
    comparisons: Sequence[Comparison], scores: NDArray[np.floating[Any]], *, seed: int
) -> LengthBias:
    """Correlations and preferences for length; see `reward.evaluation.score_pairs` for the arguments."""
    pairs, y = score_pairs(comparisons, scores), np.asarray(scores, dtype=np.float64)
    x = word_counts([response for comparison in comparisons for response in comparison.responses])
    sizes = [len(comparison.responses) for comparison in comparisons]
    longer = np.sign(x[pairs.winner] - x[pairs.loser])
    people, model = (longer > 0).astype(np.float64), 0.5 * (1.0 + np.sign(pairs.gap) * longer)
    return LengthBias(
        pearson=_correlation(_centred(x), _centred(y)),
        spearman=_correlation(_centred(rankdata(x)), _centred(rankdata(y))),
        pearson_within=_correlation(*(_each(_centred, values, sizes) for values in (x, y))),
        spearman_within=_correlation(*(_each(_centred_ranks, values, sizes) for values in (x, y))),
        **_preferences(pairs.where(longer != 0), people[longer != 0], model[longer != 0], seed),
    )


def _preferences(pairs: ScoredPairs, people: Array, model: Array, seed: int) -> dict[str, Any]:
    """How often people and model take the longer of two responses of unequal length."""
    count = len(people)
    return {
        "longer_preferred": pairs.mean(people) if count else None,
        "longer_scored_higher": pairs.mean(model) if count else None,
        "excess": mean_difference(model - people, pairs.weight, pairs.cluster, seed=seed) if count else None,
        "unequal_pairs": count,
    }


def _each(function: Callable[[Array], Array], values: Array, sizes: Sequence[int]) -> Array:
    """The function of each comparison's values, side by side again."""
    return np.concatenate([function(part) for part in np.split(values, np.cumsum(sizes)[:-1])])


def _centred(values: Array) -> Array:
    """Deviations from the mean; exactly 0 where all values are equal, which the mean's rounding would hide."""
    return values - values.mean() if np.ptp(values) else np.zeros_like(values)


def _centred_ranks(values: Array) -> Array:
    return _centred(rankdata(values))


def _correlation(x: Array, y: Array) -> float | None:
    """Pearson's, of centred values; None where one side does not vary."""
    spread = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / spread) if spread > 0 else None
