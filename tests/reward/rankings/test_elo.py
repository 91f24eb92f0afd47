import numpy as np
import pytest

from reward.rankings.bradley_terry import bradley_terry
from reward.rankings.elo import POINTS_PER_LOG_ODDS, elo_ratings
from reward.rankings.judgements import Judgement
from tests.reward.rankings.simulations import battles

WIN, TIE = ((0,), (1,)), ((0, 1),)


def rate(*rankings, points=32.0, orders=1):
    judgements = [Judgement(ranking, prompt) for prompt, ranking in enumerate(rankings)]
    return elo_ratings(judgements, 2, update_points=points, orders=orders, seed=0)


def test_two_wins_worked_by_hand():
    # 1000 + 32 * (1 - 1/2) = 1016; then expected 1 / (1 + 10^(-32/400)).
    expected = 1016 + 32 * (1 - 1 / (1 + 10 ** (-32 / 400)))

    assert rate(WIN, WIN).mean == pytest.approx([expected, 2000 - expected])
    assert rate(WIN, WIN).spread == pytest.approx([0.0, 0.0])


def test_a_tie_of_equals_moves_nobody():
    assert rate(TIE).mean == pytest.approx([1000.0, 1000.0])


def test_the_spread_shows_that_the_order_matters():
    assert np.all(rate(WIN, WIN, TIE, (WIN[1], WIN[0]), orders=20).spread > 0.1)


def test_many_games_agree_with_bradley_and_terry():
    judgements = battles((0.8, 0.1, -0.9), 1500, np.random.default_rng(0))

    elo = elo_ratings(judgements, 3, update_points=2.0, orders=10, seed=0)
    fit = bradley_terry(judgements, 3).fit(np.ones(len(judgements)), prior_std=None)
    assert elo.mean - 1000 == pytest.approx(POINTS_PER_LOG_ODDS * fit.strengths, abs=12)
