"""Elo ratings of a log of games, for comparison with fitted strengths.

Owns the sequential update. Elo (1978) reads games one after another and forgets the older ones, so its ratings depend
on the order of the log; Bradley-Terry strengths do not. The mean over shuffled orders and its spread show how much.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reward.rankings.bradley_terry import pair_votes
from reward.rankings.conditional_logit import Array, IntArray
from reward.rankings.judgements import Judgement

INITIAL_RATING = 1000.0
POINTS_PER_LOG_ODDS = 400.0 / np.log(10.0)


@dataclass(frozen=True, slots=True)
class EloRatings:
    """Ratings in points; 400 points are odds of ten to one.

    Attributes:
        mean: (N,) over the orders.
        spread: (N,) standard deviation over the orders.
    """

    mean: Array
    spread: Array


def elo_ratings(
    judgements: Sequence[Judgement], item_count: int, *, update_points: float, orders: int, seed: int
) -> EloRatings:
    """Plays the games in random orders.

    After each game, R_i += K (outcome - expected), expected = 1 / (1 + 10^((R_j - R_i) / 400)); a tie is half a win.

    Args:
        judgements: Their pairs are the games.
        item_count: N.
        update_points: K, the most points that one game moves.
        orders: How many shuffles of the log.
        seed: Of the shuffles.
    """
    votes = pair_votes(judgements)
    scores = (1.0 + votes.outcome.astype(np.float64)) / 2.0
    generator = np.random.default_rng(seed)
    ratings = np.array(
        [
            _play(votes.first[order], votes.second[order], scores[order], item_count, update_points)
            for order in (generator.permutation(len(scores)) for _ in range(orders))
        ]
    )
    return EloRatings(ratings.mean(axis=0), ratings.std(axis=0))


def _play(first: IntArray, second: IntArray, scores: Array, item_count: int, update_points: float) -> list[float]:
    ratings = [INITIAL_RATING] * item_count
    # Lists: numpy scalars would make this loop, which cannot be vectorised, several times slower.
    for i, j, score in zip(first.tolist(), second.tolist(), scores.tolist(), strict=True):
        expected = 1.0 / (1.0 + 10.0 ** ((ratings[j] - ratings[i]) / 400.0))
        moved = update_points * (score - expected)
        ratings[i] += moved
        ratings[j] -= moved
    return ratings
