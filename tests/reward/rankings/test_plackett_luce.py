import choix
import numpy as np
import pytest
from scipy.stats import binomtest

from reward.rankings.bradley_terry import bradley_terry
from reward.rankings.judgements import Judgement
from reward.rankings.plackett_luce import plackett_luce
from tests.reward.rankings.simulations import coverage, rankings

STRENGTHS = (1.5, 0.3, 0.0, -0.4, -1.0)


def fit(judgements, count, *, prior_std=None):
    return plackett_luce(judgements, count).fit(np.ones(len(judgements)), prior_std=prior_std)


def choice(item, *others):
    return Judgement(((item,), others), prompt=0, is_choice=True)


def test_choices_out_of_all_items_give_the_logs_of_their_counts():
    judgements = [choice(0, 1, 2)] * 5 + [choice(1, 0, 2)] * 2 + [choice(2, 0, 1)]

    found = fit(judgements, 3)

    logs = np.log([5, 2, 1])
    assert found.strengths == pytest.approx(logs - logs.mean())
    assert found.log_likelihood == pytest.approx(5 * np.log(5 / 8) + 2 * np.log(2 / 8) + np.log(1 / 8))


def test_a_tie_of_the_last_items_says_nothing():
    tied, chosen = (Judgement(((0,), (1, 2)), prompt=0, is_choice=flag) for flag in (False, True))
    rest = [choice(1, 0, 2), choice(2, 0, 1)]

    assert fit([tied, *rest], 3).strengths == pytest.approx(fit([chosen, *rest], 3).strengths)


def test_efrons_tie_has_the_likelihood_worked_by_hand():
    # At equal strengths: the first of 3 items, then of 3 - 1/2 * 2 = 2. Counts are 1/2 each, with offset log 1/2 on the
    # tied ones, so the value is log(1/3) + log(1/2 / 2).
    model = plackett_luce([Judgement(((0, 1), (2,)), prompt=0)], 3)
    value, _ = model.choices._evaluate(np.zeros(3), model.contributions.T @ np.ones(1))

    assert value == pytest.approx(np.log(1 / 3) + np.log(1 / 4))


def test_efrons_tie_is_close_to_the_mean_over_both_orders():
    strengths = np.array([0.5, 0.2, -0.7])
    model = plackett_luce([Judgement(((0, 1), (2,)), prompt=0)], 3)
    value, _ = model.choices._evaluate(strengths, model.contributions.T @ np.ones(1))
    a, b, c = np.exp(strengths)
    exact = a * b / (a + b + c) * (1 / (b + c) + 1 / (a + c))

    # Each of the two orders has half of the approximation's value: log 2 apart from the sum over both.
    assert value + 2 * np.log(2) == pytest.approx(np.log(exact), abs=0.02)


def test_two_items_without_ties_are_bradley_and_terrys():
    rng = np.random.default_rng(0)
    judgements = rankings(STRENGTHS, 200, 2, rng)

    expected = bradley_terry(judgements, 5).fit(np.ones(200), prior_std=None)
    assert fit(judgements, 5).strengths == pytest.approx(expected.strengths)
    assert fit(judgements, 5).covariance() == pytest.approx(expected.covariance())


def test_without_ties_the_fit_is_choixs():
    judgements = rankings(STRENGTHS, 60, 4, np.random.default_rng(1))
    data = [judgement.items for judgement in judgements]

    assert fit(judgements, 5).strengths == pytest.approx(choix.opt_rankings(5, data), abs=1e-5)


def test_known_strengths_lie_in_their_intervals_at_the_nominal_rate():
    rng = np.random.default_rng(4)
    fits = [fit(rankings(STRENGTHS, 60, 4, rng), 5) for _ in range(200)]

    for hits in coverage(fits, STRENGTHS):
        assert binomtest(int(hits), 200, 0.95).pvalue > 0.001


def test_rankings_that_tie_everything_rank_nothing():
    with pytest.raises(ValueError, match="every judgement ties all its items"):
        plackett_luce([Judgement(((0, 1, 2),), prompt=0)], 3)


def test_an_item_that_always_comes_last_needs_a_prior():
    judgements = [Judgement(((0,), (1,), (2,)), prompt=0), Judgement(((1,), (0,), (2,)), prompt=1)]
    model = plackett_luce(judgements, 3)

    with pytest.raises(ValueError, match=r"'ada', 'bob' never lost to or tied with any other.*fit\.prior_std"):
        model.require_estimable(np.ones(2), ["ada", "bob", "cyd"])
    found = fit(judgements, 3, prior_std=1.0).strengths
    assert found[0] == pytest.approx(found[1])
    assert found[2] < -0.5
