import numpy as np
import pytest
from scipy.stats import binomtest

from reward.rankings import agreement
from reward.rankings.agreement import MissingLibraryError, krippendorff_alpha, rater_agreements
from reward.rankings.judgements import Judgement


def alpha_of(judgements):
    found = krippendorff_alpha(judgements, seed=0)
    assert found is not None
    return found


def vote(prompt, rater, first_wins):
    """A vote on the two responses of a prompt; None is a tie."""
    first, second = 2 * prompt, 2 * prompt + 1
    if first_wins is None:
        return Judgement(((first, second),), prompt, rater)
    return Judgement(((first,), (second,)) if first_wins else ((second,), (first,)), prompt, rater)


def panel(rates, prompts, rng):
    """Raters who each put the better response first at their own rate."""
    found = []
    for prompt in range(prompts):
        truth = bool(rng.random() < 0.5)
        found += [vote(prompt, rater, truth if rng.random() < rate else not truth) for rater, rate in enumerate(rates)]
    return found


def test_alpha_worked_by_hand():
    # Four questions to two raters, who agree on three. Both ways round: 16 values, half of them -1. Observed
    # disagreement: 4 of 16 ordered pairs differ. Expected: 2 * 8 * 8 / (16 * 15).
    judgements = [vote(prompt, rater, prompt != 0 or rater == 0) for prompt in range(4) for rater in (0, 1)]

    found = alpha_of(judgements)

    assert found.alpha == pytest.approx(1 - (4 / 16) / (128 / 240))
    assert found.questions == 4
    assert found.low <= found.alpha <= found.high


def test_perfect_agreement_is_one_even_where_the_first_response_always_wins():
    judgements = [vote(prompt, rater, True) for prompt in range(5) for rater in (0, 1, 2)]

    assert alpha_of(judgements).alpha == pytest.approx(1.0)


def test_a_tie_is_half_a_disagreement_away_from_each_side():
    def alpha(second):
        judgements = [vote(prompt, rater, True) for prompt in range(6) for rater in (0, 1)]
        return alpha_of([*judgements, vote(6, 0, True), vote(6, 1, second)]).alpha

    assert alpha(False) < alpha(None) < alpha(True) == pytest.approx(1.0)


def test_coins_agree_by_chance_alone():
    found = alpha_of(panel([0.5, 0.5, 0.5], 400, np.random.default_rng(0)))

    assert abs(found.alpha) < 0.1


def test_the_interval_narrows_with_the_number_of_prompts_not_of_questions():
    def width(judgements):
        found = alpha_of(judgements)
        return found.high - found.low

    one_question = panel([0.8, 0.8], 40, np.random.default_rng(1))
    # Every prompt three times over: the same answers on three pairs of items.
    repeated = [
        Judgement(tuple(tuple(item + 1000 * copy for item in group) for group in one.ranking), one.prompt, one.rater)
        for one in one_question
        for copy in range(3)
    ]

    assert width(repeated) == pytest.approx(width(one_question), rel=0.15)


def test_there_is_no_alpha_without_a_shared_question_or_a_preference():
    assert krippendorff_alpha([vote(0, 0, True), vote(1, 1, True)], seed=0) is None
    assert krippendorff_alpha([vote(0, 0, None), vote(0, 1, None)], seed=0) is None


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr(agreement, "alpha_of_counts", None)

    with pytest.raises(MissingLibraryError, match="pip install krippendorff"):
        krippendorff_alpha([vote(0, 0, True), vote(0, 1, True)], seed=0)


def test_agreement_with_the_majority_of_the_others_worked_by_hand():
    # Rater 2 is against both others on prompt 0; on prompt 1 all agree; on prompt 2 the others tie: no majority for 2.
    judgements = [vote(0, 0, True), vote(0, 1, True), vote(0, 2, False)]
    judgements += [vote(1, 0, True), vote(1, 1, True), vote(1, 2, True)]
    judgements += [vote(2, 0, None), vote(2, 1, None), vote(2, 2, True)]

    first, second, third = rater_agreements(judgements, 3)

    assert (third.prompts, third.agreement) == (2, 0.5)
    # On prompt 0 the others of rater 0 cancel out; on prompt 2 rater 0 ties, which is half.
    assert (first.prompts, first.agreement) == (2, 0.75)
    assert second.agreement == 0.75
    assert third.expected == pytest.approx(0.75)


def test_a_contrarian_is_found_and_nobody_else():
    found = rater_agreements(panel([0.85, 0.8, 0.9, 0.85, 0.15], 40, np.random.default_rng(2)), 5)

    assert [rater.disagrees for rater in found] == [False, False, False, False, True]
    assert found[4].p_value == pytest.approx(0.0, abs=1e-6)


def test_raters_who_are_alike_are_seldom_accused():
    rng = np.random.default_rng(3)
    accused = sum(any(rater.disagrees for rater in rater_agreements(panel([0.75] * 6, 30, rng), 6)) for _ in range(200))

    assert binomtest(accused, 200, 0.05, alternative="greater").pvalue > 0.001


def test_the_pairs_of_one_ranking_are_no_evidence_of_their_own():
    # One prompt of six responses, ranked by three people one way and by one person the other way round: 15 pairs.
    forth, back = tuple((i,) for i in range(6)), tuple((i,) for i in reversed(range(6)))
    found = rater_agreements([Judgement(forth, 0, rater) for rater in range(3)] + [Judgement(back, 0, 3)], 4)

    assert (found[3].prompts, found[3].agreement) == (1, 0.0)
    assert not found[3].disagrees


def test_a_rater_who_shares_no_question_is_not_judged():
    found = rater_agreements([vote(0, 0, True), vote(0, 1, True), vote(1, 2, True)], 3)

    assert (found[2].prompts, found[2].agreement, found[2].p_value, found[2].disagrees) == (0, None, None, False)
