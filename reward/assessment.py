"""Everything that is measured of a reward model's scores on held-out comparisons, in one call.

Owns the list of measurements. Each of them is a module of its own; what the numbers mean for a reader is
`rlhf.reports.reward`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward.calibration import Calibration, measure_calibration
from reward.evaluation import (
    PairEvaluation,
    ScoredPairs,
    accuracy_difference,
    evaluate_scores,
    score_pairs,
)
from reward.intervals import MeanDifference
from reward.length_bias import LengthBias, measure_length_bias, word_counts
from reward.preferences import Comparison
from reward.slices import Slice, by_length_difference, by_score_gap, by_value

Scores = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """A trivial model on the same comparisons.

    Attributes:
        accuracy: Its accuracy.
        accuracy_low: Lower end of the 95 % interval.
        accuracy_high: Upper end.
        lead: The reward model's accuracy minus its, pair by pair.
    """

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    lead: MeanDifference


@dataclass(frozen=True, slots=True)
class Assessment:
    """Held-out measurements of raw scores.

    Attributes:
        accuracy: Accuracy, margin and loss.
        calibration: Of sigmoid(score difference).
        calibration_scaled: Of sigmoid(score difference / temperature); None where no temperature was fitted.
        slices: Accuracy on parts of the pairs: by `length_difference` in words, `score_gap`,
            `label_strength` and `source`.
        length: Scores against length in words.
        baselines: Trivial models by name.
    """

    accuracy: PairEvaluation
    calibration: Calibration
    calibration_scaled: Calibration | None
    slices: dict[str, list[Slice]]
    length: LengthBias
    baselines: dict[str, BaselineResult]


def assess(
    comparisons: Sequence[Comparison],
    scores: Scores,
    *,
    baselines: Mapping[str, Scores],
    temperature: float | None,
    seed: int,
) -> Assessment:
    """Measures raw scores against what people preferred.

    Args:
        comparisons: At least one; nothing may have been fitted or chosen on them.
        scores: (S,) one raw score for each response of each comparison, in their order.
        baselines: The same of trivial models, by name.
        temperature: Of `reward.calibration.fit_temperature` on other comparisons, if any.
        seed: Seed of the bootstraps.

    Raises:
        ValueError: if there is no comparison, or scores do not fit the responses or are not finite.
    """
    pairs = score_pairs(comparisons, scores)
    scaled = None if temperature is None else measure_calibration(pairs, temperature=temperature, seed=seed)
    return Assessment(
        accuracy=evaluate_scores(comparisons, scores),
        calibration=measure_calibration(pairs, seed=seed),
        calibration_scaled=scaled,
        slices=_slices(comparisons, pairs),
        length=measure_length_bias(comparisons, scores, seed=seed),
        baselines={name: _against(comparisons, scores, other, seed) for name, other in baselines.items()},
    )


def _slices(comparisons: Sequence[Comparison], pairs: ScoredPairs) -> dict[str, list[Slice]]:
    responses = [(text, comparison.origin) for comparison in comparisons for text in comparison.responses]
    origins = np.array([origin for _, origin in responses], dtype=object)
    return {
        "length_difference": by_length_difference(pairs, word_counts([text for text, _ in responses])),
        "score_gap": by_score_gap(pairs),
        "label_strength": by_value(pairs, pairs.strength),
        "source": by_value(pairs, origins[pairs.winner]),
    }


def _against(comparisons: Sequence[Comparison], scores: Scores, baseline: Scores, seed: int) -> BaselineResult:
    found = evaluate_scores(comparisons, baseline)
    lead = accuracy_difference(comparisons, scores, baseline, seed=seed)
    return BaselineResult(found.accuracy, found.accuracy_low, found.accuracy_high, lead)
