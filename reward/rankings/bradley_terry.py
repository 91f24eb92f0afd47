"""Bradley-Terry strengths from pairs, with ties after Davidson (1970).

With d = s_i - s_j, a pair of items ends in

    i better : tie : j better  =  exp(d/2) : nu : exp(-d/2),

which is Bradley and Terry (1952) where nobody ties. Davidson's ties rather than Rao and Kupper's (1967): the model
stays an exponential family, so the likelihood is concave and a tie is worth half a win. A ranking of K items is taken
apart into its pairs. Owns that, and the weights of the pairs; the fit is `strengths`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import sparse

from reward.rankings.conditional_logit import Array, ChoiceModel, IntArray
from reward.rankings.judgements import Judgement
from reward.rankings.strengths import StrengthModel


@dataclass(frozen=True, slots=True)
class PairVotes:
    """Every pair of items that a judgement compared; arrays of equal length Q.

    Attributes:
        first: (Q,) the smaller item.
        second: (Q,) the larger item.
        outcome: (Q,) 1 where the first was better, -1 where the second was, 0 for a tie.
        judgement: (Q,) index of the judgement.
        weight: (Q,) of the pair within its judgement, see `pair_weight`.
    """

    first: IntArray
    second: IntArray
    outcome: IntArray
    judgement: IntArray
    weight: Array


def pair_weight(judgement: Judgement) -> float:
    """Weight of each pair of a judgement of K items: 3 / (K + 1) for a ranking, 2 / K for a choice; 1 for a pair.

    The pairs of one ranking are consistent for the strengths (Azari Soufiani et al. 2013) but not independent, and
    counted fully they would promise intervals that are too narrow. At equal strengths an item's pairs have information
    (K-1)/4 and their score, which is its rank, variance (K^2-1)/12, hence 3 (K-1) / (4 (K+1)) of sandwich information
    (Godambe 1960). The weight makes the two equal; the choice's follows the same way.
    """
    count = len(judgement.items)
    return 2.0 / count if judgement.is_choice else 3.0 / (count + 1)


def pair_votes(judgements: Sequence[Judgement]) -> PairVotes:
    """Takes judgements apart into pairs."""
    rows = [
        (first, second, outcome, index)
        for index, judgement in enumerate(judgements)
        for first, second, outcome in _pairs(judgement)
    ]
    first, second, outcome, index = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    weights = np.array([pair_weight(judgement) for judgement in judgements], dtype=np.float64)
    return PairVotes(first, second, outcome, index, weights[index])


def bradley_terry(judgements: Sequence[Judgement], item_count: int) -> StrengthModel:
    """The model of the judgements' pairs; it has a tie parameter where any pair ties."""
    return pairs_model(pair_votes(judgements), judgement_count=len(judgements), item_count=item_count)


def pairs_model(votes: PairVotes, *, judgement_count: int, item_count: int) -> StrengthModel:
    """The model of pairs that are already apart: a stage for each two items that met, an alternative an outcome.

    Raises:
        ValueError: every pair is a tie, so nothing is better than anything.
    """
    if not np.any(votes.outcome):
        raise ValueError("data.train: every comparison is a tie, which ranks nothing; add comparisons with a winner")
    codes, stage = np.unique(votes.first * item_count + votes.second, return_inverse=True)
    first, second = np.divmod(codes, item_count)
    width = 3 if np.any(votes.outcome == 0) else 2
    slot = np.select([votes.outcome == 1, votes.outcome == -1], [0, 1], default=2)
    alternatives = width * len(codes)
    contributions = sparse.csr_array(
        (votes.weight, (votes.judgement, width * stage + slot)), shape=(judgement_count, alternatives)
    )
    choices = ChoiceModel(
        features=_features(first, second, item_count, width),
        offsets=np.zeros(alternatives),
        starts=np.arange(0, alternatives, width),
    )
    return StrengthModel(choices, contributions, item_count, _edges(first, second, width))


def _pairs(judgement: Judgement) -> Iterator[tuple[int, int, int]]:
    """(first, second, outcome) of each compared pair, the smaller item first."""
    for better, worse in combinations(judgement.ranking, 2):
        for winner in better:
            for loser in worse:
                yield (winner, loser, 1) if winner < loser else (loser, winner, -1)
    tied = judgement.ranking[:-1] if judgement.is_choice else judgement.ranking
    for group in tied:
        for one, other in combinations(group, 2):
            yield min(one, other), max(one, other), 0


def _features(first: IntArray, second: IntArray, item_count: int, width: int) -> sparse.csr_array:
    """(width * pairs, N or N + 1): +-1/2 of both strengths for a win; the log tie parameter, last, for a tie."""
    stages = width * np.arange(len(first))
    half = np.full(len(first), 0.5)
    rows = [stages, stages, stages + 1, stages + 1]
    columns = [first, second, first, second]
    values = [half, -half, -half, half]
    if width == 3:
        rows, columns = [*rows, stages + 2], [*columns, np.full(len(first), item_count)]
        values = [*values, np.ones(len(first))]
    shape = (width * len(first), item_count + (width == 3))
    return sparse.csr_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape)


def _edges(first: IntArray, second: IntArray, width: int) -> IntArray:
    stages = width * np.arange(len(first))
    edges = [(stages, first, second), (stages + 1, second, first)]
    if width == 3:
        edges += [(stages + 2, first, second), (stages + 2, second, first)]
    return np.concatenate([np.stack(edge, axis=1) for edge in edges])
