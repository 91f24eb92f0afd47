"""How scores are distributed, apart for the responses that people ranked first and for the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.preferences import Comparison

_BINS = 24


@dataclass(frozen=True, slots=True)
class ScoreDistribution:
    """A histogram and its moments.

    Attributes:
        edges: Ends of the bins, one more than there are bins.
        preferred: Responses of the first group of each ranking, counted by bin.
        others: All other responses, counted by bin.
        mean: Over all responses.
        std: Standard deviation over all responses.
        minimum: Lowest score.
        maximum: Highest score.
    """

    edges: list[float]
    preferred: list[int]
    others: list[int]
    mean: float
    std: float
    minimum: float
    maximum: float


def describe_scores(
    comparisons: Sequence[Comparison], scores: NDArray[np.floating[Any]], *, bins: int = _BINS
) -> ScoreDistribution:
    """Counts the scores of all responses in bins of equal width.

    Args:
        comparisons: At least one.
        scores: (S,) finite, one score for each response of each comparison, in their order.
        bins: How many.
    """
    values = np.asarray(scores, dtype=np.float64)
    first = np.array(
        [place in comparison.ranking[0] for comparison in comparisons for place in range(len(comparison.responses))]
    )
    edges = np.histogram_bin_edges(values, bins)
    preferred, others = (np.histogram(values[chosen], edges)[0].tolist() for chosen in (first, ~first))
    return ScoreDistribution(
        edges=edges.tolist(),
        preferred=preferred,
        others=others,
        mean=float(values.mean()),
        std=float(values.std()),
        minimum=float(values.min()),
        maximum=float(values.max()),
    )
