"""What each rater's votes count, and how each compares with the others.

Owns the choice between equal, estimated and given weights, and the raters' table. The methods are in `reliability` and
`agreement`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.rankings.agreement import RaterAgreement, rater_agreements
from reward.rankings.conditional_logit import Array
from reward.rankings.config import EqualRaters, EstimatedRaters, GivenRaters, RankingsConfig
from reward.rankings.judgements import Judgement, JudgementSet
from reward.rankings.reliability import (
    crowd_reliability,
    effective_weights,
    reliability_weights,
    weights_from_rows,
)


@dataclass(frozen=True, slots=True)
class Rater:
    """One rater.

    Attributes:
        name: Name in the data.
        judgements: How many there are.
        reliability: Crowd-BT's; None where it was not estimated.
        weight: Of each of the rater's judgements, before all are scaled together.
        agreement: With the others.
    """

    name: str
    judgements: int
    reliability: float | None
    weight: float
    agreement: RaterAgreement


@dataclass(frozen=True, slots=True)
class Raters:
    """All raters.

    Attributes:
        raters: In the order of their numbers; empty where the rows name none.
        weights: (J,) of the judgements, scaled to the number of equal votes that they are worth.
    """

    raters: list[Rater]
    weights: Array

    @property
    def outliers(self) -> list[str]:
        """Names of those who disagree with everyone."""
        return [rater.name for rater in self.raters if rater.agreement.disagrees]


def weigh_raters(judged: JudgementSet, config: RankingsConfig, given: Sequence[Mapping[str, Any]]) -> Raters:
    """Decides what each judgement counts.

    Raters are compared on pairs of responses to one prompt; in a log of battles, where the same two responses are
    seldom judged twice, on pairs of models.

    Args:
        judged: The judgements.
        config: `raters`, the priors of `fit`, and the shape of the data.
        given: Rows of the file `raters.path`; empty for other kinds.

    Raises:
        ValueError: the file's raters are not those of the data, or nothing has a weight above 0.
    """
    if not judged.raters:
        if isinstance(config.raters, GivenRaters):
            raise ValueError(
                f"raters.path={config.raters.path}: data.format.rater_field is null, so the judgements have no raters "
                "to weigh; name the field, or set raters.kind=equal"
            )
        return Raters([], np.ones(len(judged.judgements)))
    is_log = config.data.format.kind == "battles"
    judgements = judged.between_models()[0] if is_log else judged.judgements
    reliability = _reliability(judgements, len(judged.raters), config)
    weights = _weights(judged, config, given, reliability)
    counts = Counter(judgement.rater for judgement in judged.judgements)
    raters = [
        Rater(
            name=name,
            judgements=counts[number],
            reliability=None if reliability is None else float(reliability[number]),
            weight=float(weights[number]),
            agreement=agreement,
        )
        for number, (name, agreement) in enumerate(
            zip(judged.raters, rater_agreements(judgements, len(judged.raters)), strict=True)
        )
    ]
    of_judgement = np.array([judgement.rater for judgement in judged.judgements])
    return Raters(raters, effective_weights(weights[of_judgement]))


def _reliability(judgements: Sequence[Judgement], raters: int, config: RankingsConfig) -> Array | None:
    if not isinstance(config.raters, EstimatedRaters):
        return None
    return crowd_reliability(
        judgements,
        raters,
        prior_std=config.fit.response_prior_std,
        prior_reliability=config.raters.prior_reliability,
        prior_votes=config.raters.prior_votes,
    )


def _weights(
    judged: JudgementSet, config: RankingsConfig, given: Sequence[Mapping[str, Any]], reliability: Array | None
) -> Array:
    if reliability is not None:
        return reliability_weights(reliability)
    if isinstance(config.raters, GivenRaters):
        return weights_from_rows(given, judged.raters, source=f"raters.path={config.raters.path}")
    assert isinstance(config.raters, EqualRaters), f"no weights for raters.kind={config.raters.kind}"
    return np.ones(len(judged.raters))
