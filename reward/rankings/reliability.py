"""How far each rater can be trusted, and what that makes of their votes.

Owns Crowd-BT, the weights that follow from it or from a file, and the count of votes that weights leave. Whether a
rater disagrees significantly is `agreement`.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reward.rankings.bradley_terry import pair_votes
from reward.rankings.conditional_logit import Array, ConvergenceError, IntArray
from reward.rankings.judgements import Judgement

_MAX_ROUNDS = 5000
_NODES = 21
_CONVERGED = 1e-5
_NAMED = 5


def crowd_reliability(
    judgements: Sequence[Judgement],
    rater_count: int,
    *,
    prior_std: float,
    prior_reliability: float,
    prior_votes: float,
) -> Array:
    """Estimates each rater's reliability together with the strengths: Crowd-BT (Chen et al. 2013, section 3).

    Of rater k, P(i is put above j) = eta_k sigmoid(d) + (1 - eta_k) sigmoid(-d), d = s_i - s_j: with probability eta_k
    the rater votes as the crowd's strengths say, else the other way round; 1/2 is a coin, below it a contrarian.

    Unlike there, the d of each pair is integrated out over its prior N(0, 2 prior_std^2), by Gauss-Hermite quadrature
    inside EM (Bock and Aitkin 1981): a few votes a pair would fit their own d, and every rater would look perfect. Ties
    say nothing about their rater.

    Args:
        judgements: Their pairs are used.
        rater_count: R.
        prior_std: Of a strength, log-odds.
        prior_reliability: What is believed of a rater without votes.
        prior_votes: How many votes that belief is worth.

    Returns:
        (R,) eta, between 0 and 1.

    Raises:
        ConvergenceError: EM did not settle.
    """
    votes = _decided_votes(judgements)
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    lead = votes.outcome[:, None] * (math.sqrt(2.0) * prior_std * nodes)
    agrees = 1.0 / (1.0 + np.exp(-lead))
    reliability = np.full(rater_count, prior_reliability)
    total = np.bincount(votes.rater, votes.weight, rater_count) + prior_votes
    for _ in range(_MAX_ROUNDS):
        honest = _honesty(votes, agrees, np.log(weights), reliability[votes.rater][:, None])
        told = np.bincount(votes.rater, votes.weight * honest, rater_count)
        before, reliability = reliability, (told + prior_votes * prior_reliability) / total
        if np.max(np.abs(reliability - before)) < _CONVERGED:
            return reliability
    raise ConvergenceError(
        f"the raters' reliabilities did not settle in {_MAX_ROUNDS} rounds; set raters.kind=equal, or raise "
        "raters.prior_votes"
    )


def reliability_weights(reliability: Array) -> Array:
    """(R,) max(0, 2 eta - 1): 1 for a rater who never errs, 0 for a coin.

    A vote of rater k moves away from 1/2 by the factor 2 eta_k - 1, which is the best weight for it where strengths
    are close. A contrarian gets 0: turning a vote round would trust the model more than the person.
    """
    return np.maximum(0.0, 2.0 * reliability - 1.0)


def weights_from_rows(rows: Sequence[Mapping[str, Any]], raters: Sequence[str], *, source: str) -> Array:
    """(R,) weights from rows with `rater` and `weight`.

    Raises:
        ValueError: a row lacks a field, a weight is no number >= 0, or the raters are not those of the data.
    """
    given: dict[str, float] = {}
    for number, row in enumerate(rows):
        place = f"{source}, row {number}"
        missing = [name for name in ("rater", "weight") if row.get(name) is None]
        if missing:
            raise ValueError(f"{place}: field {missing[0]!r} is missing; a row needs `rater` and `weight`: add it")
        name = str(row["rater"])
        if name in given:
            raise ValueError(f"{place}: rater {name!r} stands twice; keep one weight for each rater")
        given[name] = _weight(row["weight"], place)
    _require_same_raters(given, raters, source)
    return np.array([given[name] for name in raters])


def effective_weights(weights: Array) -> Array:
    """Scales weights so that their sum is the number of equal votes they are worth, (sum w)^2 / sum w^2 (Kish 1965).

    Without it, halving every weight would widen every interval, and one rater of weight 100 would count as 100 people.

    Raises:
        ValueError: no weight is above 0.
    """
    squares = float(weights @ weights)
    if squares == 0.0:
        raise ValueError(
            "raters: every judgement has weight 0, so nothing is left to rank; give weights above 0, or set "
            "raters.kind=equal"
        )
    return weights * (float(weights.sum()) / squares)


@dataclass(frozen=True, slots=True)
class _DecidedVotes:
    """Pair votes that are no ties, those on one pair together; (Q,) each but `starts`, the first vote on each pair."""

    outcome: IntArray
    rater: IntArray
    weight: Array
    starts: IntArray
    pair: IntArray


def _decided_votes(judgements: Sequence[Judgement]) -> _DecidedVotes:
    votes = pair_votes(judgements)
    order = np.lexsort((votes.second, votes.first))
    order = order[votes.outcome[order] != 0]
    both = np.stack([votes.first[order], votes.second[order]])
    _, starts, pair = np.unique(both, axis=1, return_index=True, return_inverse=True)
    rater = np.array([judgement.rater for judgement in judgements])[votes.judgement[order]]
    return _DecidedVotes(votes.outcome[order], rater, votes.weight[order], starts, pair)


def _honesty(votes: _DecidedVotes, agrees: Array, log_prior: Array, reliability: Array) -> Array:
    """(Q,) posterior probability that a vote was not turned round, given all votes on its pair.

    Args:
        votes: Q of them.
        agrees: (Q, nodes) sigmoid of the difference, in the direction of the vote, at each node.
        log_prior: (nodes,) logarithm of the quadrature weights.
        reliability: (Q, 1) of each vote's rater.
    """
    if not len(votes.outcome):
        return np.zeros(0)
    honest = reliability * agrees
    likelihood = honest + (1.0 - reliability) * (1.0 - agrees)
    log_posterior = np.add.reduceat(votes.weight[:, None] * np.log(likelihood), votes.starts) + log_prior
    posterior = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    return np.sum(posterior[votes.pair] * honest / likelihood, axis=1)


def _weight(value: Any, place: str) -> float:
    try:
        weight = float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"{place}: weight is {value!r}; a finite number of at least 0 is allowed: correct it")
    return weight


def _require_same_raters(given: Mapping[str, float], raters: Sequence[str], source: str) -> None:
    unknown = [name for name in given if name not in set(raters)]
    if unknown:
        close = difflib.get_close_matches(unknown[0], raters, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{source}: {_named(unknown)} judged nothing in data.train{hint}; allowed are {_named(raters)}: remove or "
            "correct the row"
        )
    missing = [name for name in raters if name not in given]
    if missing:
        raise ValueError(f"{source}: no weight for {_named(missing)}; give every rater of data.train one: add a row")


def _named(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"rater{'s' if len(names) > 1 else ''} {', '.join(map(repr, names[:_NAMED]))}{rest}"
