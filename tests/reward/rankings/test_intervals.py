import numpy as np
import pytest

from reward.rankings.bradley_terry import bradley_terry
from reward.rankings.intervals import bootstrap_intervals, fisher_intervals
from reward.rankings.judgements import Judgement
from reward.rankings.plackett_luce import plackett_luce
from tests.reward.rankings.simulations import battles, rankings

STRENGTHS = (0.9, 0.1, -1.0)


def both(model, judgements, *, prior_std=None):
    weights = np.ones(len(judgements))
    fit = model.fit(weights, prior_std=prior_std)
    options = {"prior_std": prior_std, "resamples": 300, "seed": 0}
    return fisher_intervals(fit), bootstrap_intervals(model, fit, judgements, weights, **options), fit


def widths(intervals):
    assert intervals is not None
    return intervals.high - intervals.low


def test_the_fisher_interval_is_the_strength_and_two_standard_errors_either_way():
    judgements = [Judgement(((0,), (1,)), prompt) for prompt in range(3)] + [Judgement(((1,), (0,)), 3)]
    fisher, _, _ = both(bradley_terry(judgements, 2), judgements)

    half = 1.959964 * np.sqrt(1 / 3)
    assert fisher.low == pytest.approx([np.log(3) / 2 - half, -np.log(3) / 2 - half])
    assert fisher.high == pytest.approx([np.log(3) / 2 + half, -np.log(3) / 2 + half])


@pytest.mark.parametrize("tie_parameter", [0.0, 0.7])
def test_both_intervals_agree_where_judgements_are_independent(tie_parameter):
    judgements = battles(STRENGTHS, 150, np.random.default_rng(0), tie_parameter=tie_parameter)
    fisher, bootstrap, _ = both(bradley_terry(judgements, 3), judgements)

    assert (bootstrap.resamples, bootstrap.lost) == (300, 0)
    assert widths(bootstrap.intervals) == pytest.approx(widths(fisher), rel=0.15)


def test_both_intervals_agree_for_rankings_too():
    judgements = rankings((*STRENGTHS, 0.0), 200, 4, np.random.default_rng(1))
    fisher, bootstrap, _ = both(plackett_luce(judgements, 4), judgements)

    assert widths(bootstrap.intervals) == pytest.approx(widths(fisher), rel=0.15)


def test_votes_that_repeat_each_other_widen_the_bootstrap_alone():
    once = battles(STRENGTHS, 60, np.random.default_rng(2))
    echoed = [judgement for judgement in once for _ in range(4)]

    fisher, bootstrap, _ = both(bradley_terry(echoed, 3), echoed)
    fisher_once, bootstrap_once, _ = both(bradley_terry(once, 3), once)
    assert fisher.high - fisher.low == pytest.approx((fisher_once.high - fisher_once.low) / 2)
    assert widths(bootstrap.intervals) == pytest.approx(widths(bootstrap_once.intervals))


def test_too_many_resamples_without_a_fit_leave_no_interval():
    # Item 1 beats item 0 once in ten: a resample misses that game with probability 0.9^10.
    judgements = [Judgement(((0,), (1,)), prompt) for prompt in range(9)] + [Judgement(((1,), (0,)), 9)]
    _, bootstrap, _ = both(bradley_terry(judgements, 2), judgements)

    assert bootstrap.intervals is None
    assert bootstrap.lost == pytest.approx(300 * 0.9**10, abs=30)
    _, with_prior, _ = both(bradley_terry(judgements, 2), judgements, prior_std=1.0)
    assert with_prior.intervals is not None
    assert with_prior.lost == 0
