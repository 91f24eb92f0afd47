"""Judgements -> everything that `rlhf rankings` reports: raters, strengths of models, ranked responses.

Owns the order of things and what is left out with which reason. It reads and writes no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.rankings.aggregation import RankedPrompts, rank_prompts
from reward.rankings.agreement import Agreement, MissingLibraryError, krippendorff_alpha
from reward.rankings.config import RankingsConfig, ScoredFormat
from reward.rankings.judgements import JudgementSet
from reward.rankings.raters import Raters, weigh_raters
from reward.rankings.standings import Standings, standings, strength_model
from reward.rankings.strengths import NotEstimableError, StrengthFit


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the judgements say.

    Attributes:
        judged: The judgements.
        raters: Their weights, and how they compare.
        agreement: Krippendorff's alpha; None where no two raters judged the same, or without its library.
        standings: Models by strength; None where rows name fewer than two, or where that cannot be told.
        ranked: Prompts with their responses in order.
        notes: What was left out and why, a sentence each.
    """

    judged: JudgementSet
    raters: Raters
    agreement: Agreement | None
    standings: Standings | None
    ranked: RankedPrompts
    notes: list[str]


def find_outcome(judged: JudgementSet, config: RankingsConfig, given: Sequence[Mapping[str, Any]]) -> Outcome:
    """Weighs raters, fits strengths, orders responses.

    Args:
        judged: The judgements.
        config: How.
        given: Rows of the file `raters.path`; empty for other kinds.

    Raises:
        ValueError: what the user can fix: raters without weights, models without a link, or ties alone.
    """
    notes: list[str] = []
    raters = weigh_raters(judged, config, given)
    agreement = _agreement(judged, config, notes)
    table = _standings(judged, config, raters, notes)
    ranked = _ranked(judged, config, raters)
    if not ranked.prompts and config.data.format.kind != "battles":
        raise ValueError(
            f"data.train={config.data.train}: on every prompt ({ranked.tied}) all responses tie, so there is nothing "
            f"to write; add votes, or lower fit.tie_margin={config.fit.tie_margin:g}"
        )
    return Outcome(judged, raters, agreement, table, ranked, notes)


def _agreement(judged: JudgementSet, config: RankingsConfig, notes: list[str]) -> Agreement | None:
    if len(judged.raters) < 2:
        return None
    try:
        return krippendorff_alpha(judged.judgements, seed=config.seed)
    except MissingLibraryError as error:
        notes.append(f"{error}.")
        return None


def _standings(judged: JudgementSet, config: RankingsConfig, raters: Raters, notes: list[str]) -> Standings | None:
    judgements, indices = judged.between_models()
    if not judgements:
        return None
    try:
        return standings(judgements, raters.weights[indices], judged.models, config.fit, seed=config.seed)
    except NotEstimableError as error:
        # Of a log of battles, strengths are the purpose. Elsewhere they come beside the rankings, which can be written.
        if config.data.format.kind == "battles":
            raise
        notes.append(f"Strengths of models were left out. {error}.")
        return None


def _ranked(judged: JudgementSet, config: RankingsConfig, raters: Raters) -> RankedPrompts:
    scored = isinstance(config.data.format, ScoredFormat) and config.data.format.rater_field is None
    has_texts = any(response.text is not None for response in judged.responses)
    if scored or not has_texts:
        margin = config.data.format.tie_margin if isinstance(config.data.format, ScoredFormat) else 0.0
        return rank_prompts(judged, None, tie_margin=margin)
    return rank_prompts(judged, _response_fit(judged, config, raters), tie_margin=config.fit.tie_margin)


def _response_fit(judged: JudgementSet, config: RankingsConfig, raters: Raters) -> StrengthFit:
    model = strength_model(judged.judgements, len(judged.responses), config.fit)
    return model.fit(np.asarray(raters.weights), prior_std=config.fit.response_prior_std)
