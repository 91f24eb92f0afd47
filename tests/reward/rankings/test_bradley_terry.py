import choix
import numpy as np
import pytest
from scipy.stats import binomtest

from reward.rankings.bradley_terry import bradley_terry, pair_votes
from reward.rankings.judgements import Judgement
from tests.reward.rankings.simulations import battles, coverage, rankings

STRENGTHS = (1.2, 0.4, 0.0, -0.5, -1.1)


def fit(judgements, count, *, prior_std=None, weights=None):
    model = bradley_terry(judgements, count)
    return model.fit(np.ones(len(judgements)) if weights is None else np.asarray(weights, float), prior_std=prior_std)


def games(*outcomes):
    """(winner, loser, how often), or for a tie (one, other, how often, "tie")."""
    found = []
    for one, other, count, *tie in outcomes:
        found += [Judgement(((one, other),) if tie else ((one,), (other,)), prompt=0)] * count
    return found


def test_two_items_differ_by_the_log_odds_of_their_wins():
    found = fit(games((0, 1, 3), (1, 0, 1)), 2)

    assert found.strengths == pytest.approx([np.log(3) / 2, -np.log(3) / 2])
    # Information of the difference is n p (1 - p) = 4 * 3/4 * 1/4; each strength is half of it.
    assert np.diag(found.covariance()) == pytest.approx([1 / 0.75 / 4] * 2)
    assert found.log_likelihood == pytest.approx(3 * np.log(0.75) + np.log(0.25))
    assert found.log_tie is None


def test_davidsons_ties_of_two_items_have_a_closed_form():
    found = fit(games((0, 1, 4), (1, 0, 1), (0, 1, 6, "tie")), 2)

    # exp(d) = wins / losses; nu = ties / sqrt(wins * losses). The prior on log nu moves the fourth digit.
    assert found.strengths[0] - found.strengths[1] == pytest.approx(np.log(4), rel=0.01)
    assert found.log_tie == pytest.approx(np.log(6 / 2), abs=0.02)


def test_a_weight_counts_like_so_many_votes():
    once = fit(games((0, 1, 1), (1, 0, 1), (1, 2, 1), (2, 1, 1), (2, 0, 1)), 3, weights=[2, 1, 1, 3, 1])
    often = fit(games((0, 1, 2), (1, 0, 1), (1, 2, 1), (2, 1, 3), (2, 0, 1)), 3)

    assert once.strengths == pytest.approx(often.strengths)
    assert once.covariance() == pytest.approx(often.covariance())


def test_without_ties_the_fit_is_choixs():
    judgements = battles(STRENGTHS, 12, np.random.default_rng(3))
    data = [(judgement.items[0], judgement.items[1]) for judgement in judgements]

    assert fit(judgements, 5).strengths == pytest.approx(choix.opt_pairwise(5, data), abs=1e-5)
    # choix's penalty is alpha * |s|^2, that of a prior |s|^2 / (2 std^2).
    assert fit(judgements, 5, prior_std=1.0).strengths == pytest.approx(
        choix.opt_pairwise(5, data, alpha=0.5), abs=1e-5
    )


def test_a_ranking_is_taken_apart_into_its_pairs():
    votes = pair_votes([Judgement(((2,), (0, 1)), prompt=0), Judgement(((1,), (0, 2)), prompt=0, is_choice=True)])
    found = list(zip(votes.first, votes.second, votes.outcome, votes.judgement, votes.weight, strict=True))

    assert sorted(found) == [
        (0, 1, -1, 1, pytest.approx(2 / 3)),
        (0, 1, 0, 0, 0.75),
        (0, 2, -1, 0, 0.75),
        (1, 2, -1, 0, 0.75),
        (1, 2, 1, 1, pytest.approx(2 / 3)),
    ]


@pytest.mark.parametrize("tie_parameter", [0.0, 0.8])
def test_known_strengths_lie_in_their_intervals_at_the_nominal_rate(tie_parameter):
    rng = np.random.default_rng(0)
    fits = [fit(battles(STRENGTHS, 25, rng, tie_parameter=tie_parameter), 5) for _ in range(200)]

    for hits in coverage(fits, STRENGTHS):
        assert binomtest(int(hits), 200, 0.95).pvalue > 0.001


def test_the_tie_parameter_is_recovered():
    found = fit(battles(STRENGTHS, 300, np.random.default_rng(1), tie_parameter=0.8), 5)

    assert found.log_tie == pytest.approx(np.log(0.8), abs=0.1)


def test_strengths_from_the_pairs_of_rankings_lie_in_their_intervals_too():
    rng = np.random.default_rng(2)
    fits = [fit(rankings(STRENGTHS, 60, 4, rng), 5) for _ in range(200)]

    for hits in coverage(fits, STRENGTHS):
        assert binomtest(int(hits), 200, 0.95).pvalue > 0.001


def test_strengths_drawn_from_the_prior_lie_in_the_posteriors_intervals():
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        strengths = rng.normal(size=4)
        found = fit(battles(strengths, 8, rng), 4, prior_std=1.0)
        hits += abs(found.strengths[0] - strengths[0]) <= 1.96 * np.sqrt(found.covariance()[0, 0])

    assert binomtest(hits, 200, 0.95).pvalue > 0.001


def test_a_block_of_items_that_meet_nobody_else_has_the_covariance_of_the_whole():
    judgements = games((0, 1, 3), (1, 0, 1), (2, 3, 2), (3, 4, 1), (4, 2, 1))
    found = fit(judgements, 5, prior_std=1.0)

    assert found.block_covariance(2, 5) == pytest.approx(found.covariance()[2:, 2:])


def test_many_small_groups_are_fitted_as_each_alone():
    judgements = [one for pair in range(300) for one in games((2 * pair, 2 * pair + 1, 3), (2 * pair + 1, 2 * pair, 1))]

    alone = fit(games((0, 1, 3), (1, 0, 1)), 2, prior_std=1.0).strengths
    assert fit(judgements, 600, prior_std=1.0).strengths == pytest.approx(np.tile(alone, 300))


def test_ties_alone_rank_nothing():
    with pytest.raises(ValueError, match="every comparison is a tie"):
        bradley_terry(games((0, 1, 3, "tie")), 2)


def refusal(judgements, names):
    model = bradley_terry(judgements, len(names))
    weights = np.ones(len(judgements))
    assert not model.is_estimable(weights)
    with pytest.raises(ValueError, match=r"set fit\.prior_std") as error:
        model.require_estimable(weights, names)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_items_that_never_meet_are_named():
    message = refusal(games((0, 1, 2), (1, 0, 1), (2, 3, 1), (3, 2, 1)), ["ada", "bob", "cyd", "dot"])

    assert "2 parts that never meet" in message
    assert "{'ada', 'bob'} and {'cyd', 'dot'}" in message


def test_items_that_never_lose_are_named():
    message = refusal(games((2, 0, 4), (0, 1, 1), (1, 0, 1)), ["ada", "bob", "cyd"])

    assert message.startswith("fit: 'cyd' never lost")
    assert "perfect separation" in message


def test_a_tie_links_both_ways():
    judgements = games((0, 1, 4), (0, 1, 1, "tie"))
    bradley_terry(judgements, 2).require_estimable(np.ones(5), ["ada", "bob"])

    assert fit(judgements, 2).strengths[0] == pytest.approx(-fit(judgements, 2).strengths[1])


def test_a_prior_keeps_separated_and_unlinked_items_finite():
    found = fit(games((0, 1, 5), (2, 3, 1)), 4, prior_std=1.0)

    assert np.all(np.isfinite(found.strengths))
    assert found.strengths[0] > found.strengths[2] > 0 > found.strengths[3] > found.strengths[1]
