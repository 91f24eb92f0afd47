"""95 % intervals of fitted strengths, two ways: from the Fisher information, and by resampling prompts.

Owns both. The Fisher interval takes judgements to be independent; the bootstrap takes prompts to be, and is the honest
one where several people judged the same responses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward.rankings.conditional_logit import Array
from reward.rankings.judgements import Judgement
from reward.rankings.strengths import StrengthFit, StrengthModel

_Z = 1.959964
_MOST_LOST = 0.1


@dataclass(frozen=True, slots=True)
class Intervals:
    """Lower and upper ends, (N,) each.

    Attributes:
        low: Lower ends.
        high: Upper ends.
    """

    low: Array
    high: Array


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Intervals from refits of resampled judgements.

    Attributes:
        intervals: Percentiles of the resampled strengths; None where too many resamples had no finite fit.
        resamples: How many were fitted.
        lost: How many had no finite fit: parts that never met, or items that never lost.
    """

    intervals: Intervals | None
    resamples: int
    lost: int


def fisher_intervals(fit: StrengthFit) -> Intervals:
    """Strength +- 1.96 standard errors, from the inverse Fisher information at the maximum."""
    error = _Z * np.sqrt(np.diag(fit.covariance()))
    return Intervals(fit.strengths - error, fit.strengths + error)


def bootstrap_intervals(
    model: StrengthModel,
    fit: StrengthFit,
    judgements: Sequence[Judgement],
    weights: Array,
    *,
    prior_std: float | None,
    resamples: int,
    seed: int,
) -> Bootstrap:
    """Percentiles of strengths refitted to prompts drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    Args:
        model: Of the judgements.
        fit: Its fit to them.
        judgements: For their prompts.
        weights: (J,) as the fit had them.
        prior_std: As the fit had it.
        resamples: How many.
        seed: Of the draws.
    """
    _, prompt = np.unique([judgement.prompt for judgement in judgements], return_inverse=True)
    count = int(prompt.max()) + 1
    generator = np.random.default_rng(seed)
    drawn = [np.bincount(generator.integers(0, count, size=count), minlength=count) for _ in range(resamples)]
    resampled = [weights * times[prompt] for times in drawn]
    kept = [one for one in resampled if prior_std is not None or model.is_estimable(one)]
    lost = resamples - len(kept)
    if lost > _MOST_LOST * resamples:
        return Bootstrap(None, len(kept), lost)
    strengths = np.array([model.fit(one, prior_std=prior_std, start=fit).strengths for one in kept])
    low, high = np.quantile(strengths, [0.025, 0.975], axis=0)
    return Bootstrap(Intervals(low, high), len(kept), lost)
