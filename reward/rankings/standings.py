"""Models by strength: the fit over all judgements with its intervals, wins and losses, and Elo beside it.

Owns the table. The statistics are in `strengths`, `intervals` and `elo`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward.rankings.bradley_terry import bradley_terry, pair_votes
from reward.rankings.conditional_logit import Array, IntArray
from reward.rankings.config import FitConfig
from reward.rankings.elo import INITIAL_RATING, POINTS_PER_LOG_ODDS, elo_ratings
from reward.rankings.intervals import Bootstrap, bootstrap_intervals, fisher_intervals
from reward.rankings.judgements import Judgement
from reward.rankings.plackett_luce import plackett_luce
from reward.rankings.strengths import StrengthModel

_ELO_ORDERS = 20


@dataclass(frozen=True, slots=True)
class Standing:
    """One model.

    Attributes:
        model: Name.
        strength: Log-odds, mean 0 over the models.
        fisher_low: Lower end of the 95 % interval from the Fisher information.
        fisher_high: Upper end.
        bootstrap_low: Lower end of the 95 % bootstrap interval over prompts; None without one.
        bootstrap_high: Upper end.
        rating: The strength in Elo's unit: 1000 + 400 / ln 10 * strength.
        elo: Elo rating, mean over random orders of the log.
        elo_spread: Its standard deviation over the orders.
        wins: Pairs won, over all judgements.
        ties: Pairs tied.
        losses: Pairs lost.
    """

    model: str
    strength: float
    fisher_low: float
    fisher_high: float
    bootstrap_low: float | None
    bootstrap_high: float | None
    rating: float
    elo: float
    elo_spread: float
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True, slots=True)
class Standings:
    """All models, strongest first.

    Attributes:
        models: One entry each.
        log_likelihood: Of the judgements at their weights, nats.
        tie_parameter: Davidson's nu; None where nothing ties, or for Plackett-Luce.
        bootstrap_resamples: How many were fitted.
        bootstrap_lost: How many had no finite fit.
    """

    models: list[Standing]
    log_likelihood: float
    tie_parameter: float | None
    bootstrap_resamples: int
    bootstrap_lost: int


def strength_model(judgements: Sequence[Judgement], item_count: int, config: FitConfig) -> StrengthModel:
    """The configured model of rankings."""
    build = plackett_luce if config.model == "plackett_luce" else bradley_terry
    return build(judgements, item_count)


def standings(
    judgements: Sequence[Judgement], weights: Array, names: Sequence[str], config: FitConfig, *, seed: int
) -> Standings:
    """Fits the models' strengths.

    Args:
        judgements: Over indices into `names`.
        weights: (J,) of the judgements.
        names: Of the models.
        config: Which model of rankings, its prior, and the resamples.
        seed: Of bootstrap and Elo orders.

    Raises:
        NotEstimableError: without a prior, where models never met or never lost.
    """
    model = strength_model(judgements, len(names), config)
    if config.prior_std is None:
        model.require_estimable(weights, names)
    fit = model.fit(weights, prior_std=config.prior_std)
    fisher, bootstrap = fisher_intervals(fit), Bootstrap(None, 0, 0)
    if config.bootstrap_resamples:
        options = {"prior_std": config.prior_std, "resamples": config.bootstrap_resamples, "seed": seed}
        bootstrap = bootstrap_intervals(model, fit, judgements, weights, **options)
    elo = elo_ratings(judgements, len(names), update_points=config.elo_update_points, orders=_ELO_ORDERS, seed=seed)
    wins, ties, losses = _record(judgements, len(names))
    resampled = bootstrap.intervals
    found = [
        Standing(
            model=names[index],
            strength=float(fit.strengths[index]),
            fisher_low=float(fisher.low[index]),
            fisher_high=float(fisher.high[index]),
            bootstrap_low=float(resampled.low[index]) if resampled else None,
            bootstrap_high=float(resampled.high[index]) if resampled else None,
            rating=float(INITIAL_RATING + POINTS_PER_LOG_ODDS * fit.strengths[index]),
            elo=float(elo.mean[index]),
            elo_spread=float(elo.spread[index]),
            wins=int(wins[index]),
            ties=int(ties[index]),
            losses=int(losses[index]),
        )
        for index in map(int, np.argsort(-fit.strengths, kind="stable"))
    ]
    tie_parameter = None if fit.log_tie is None else float(np.exp(fit.log_tie))
    return Standings(found, fit.log_likelihood, tie_parameter, bootstrap.resamples, bootstrap.lost)


def _record(judgements: Sequence[Judgement], count: int) -> tuple[IntArray, IntArray, IntArray]:
    """(N,) pairs won, tied and lost by each model."""
    votes = pair_votes(judgements)
    sides = np.concatenate([votes.first, votes.second])
    outcomes = np.concatenate([votes.outcome, -votes.outcome])
    won, tied, lost = (np.bincount(sides[outcomes == value], minlength=count) for value in (1, 0, -1))
    return won, tied, lost
