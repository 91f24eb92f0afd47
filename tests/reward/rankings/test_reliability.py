import numpy as np
import pytest

from reward.rankings.judgements import Judgement
from reward.rankings.reliability import (
    crowd_reliability,
    effective_weights,
    reliability_weights,
    weights_from_rows,
)

PRIOR = {"prior_std": 1.0, "prior_reliability": 0.8, "prior_votes": 2.0}


def crowd(reliabilities, prompts, rng, *, ties=False):
    """Two responses a prompt, judged once by every rater, who errs at the given rate."""
    found = []
    for prompt in range(prompts):
        lead = rng.normal(scale=2**0.5)
        first, second = 2 * prompt, 2 * prompt + 1
        for rater, reliability in enumerate(reliabilities):
            first_wins = rng.random() < 1 / (1 + np.exp(-lead))
            if rng.random() > reliability:
                first_wins = not first_wins
            ranking = ((first,), (second,)) if first_wins else ((second,), (first,))
            found.append(Judgement(ranking, prompt, rater))
        if ties:
            found.append(Judgement(((first, second),), prompt, 0))
    return found


def estimate(judgements, raters):
    return crowd_reliability(judgements, raters, **PRIOR)


def test_reliabilities_known_in_simulation_are_recovered():
    truth = [0.98, 0.9, 0.75, 0.5, 0.15]

    found = estimate(crowd(truth, 800, np.random.default_rng(0)), 5)

    assert found == pytest.approx(truth, abs=0.12)
    assert reliability_weights(found)[4] == 0.0
    assert reliability_weights(np.array([1.0, 0.75, 0.5])) == pytest.approx([1.0, 0.5, 0.0])


def test_a_rater_without_a_vote_that_tells_anything_keeps_the_prior():
    judgements = crowd([0.95, 0.95], 50, np.random.default_rng(1))
    judgements += [Judgement(((0, 1),), 0, 2)]

    assert estimate(judgements, 3)[2] == pytest.approx(0.8)


def test_ties_say_nothing_about_the_rater_who_gives_them():
    with_ties, without = (crowd([0.95, 0.7, 0.9], 60, np.random.default_rng(2), ties=ties) for ties in (True, False))

    assert estimate(with_ties, 3) == pytest.approx(estimate(without, 3), abs=1e-4)


def test_ties_alone_leave_every_rater_at_the_prior():
    assert estimate([Judgement(((0, 1),), 0, 0), Judgement(((0, 1),), 0, 1)], 2) == pytest.approx([0.8, 0.8])


def test_weights_are_scaled_to_the_number_of_equal_votes_they_are_worth():
    # (1 + 1 + 2)^2 / (1 + 1 + 4) = 16/6 votes.
    assert effective_weights(np.array([1.0, 1.0, 2.0])) == pytest.approx([2 / 3, 2 / 3, 4 / 3])
    assert effective_weights(np.full(7, 0.2)) == pytest.approx(np.ones(7))


def test_no_weight_at_all_is_refused():
    with pytest.raises(ValueError, match=r"every judgement has weight 0.*raters\.kind=equal"):
        effective_weights(np.zeros(3))


RATERS = ["ada", "bob", "17"]
GIVEN = [{"rater": "bob", "weight": 2}, {"rater": 17, "weight": 0.0}, {"rater": "ada", "weight": "0.5"}]


def test_given_weights_are_put_in_the_order_of_the_raters():
    assert weights_from_rows(GIVEN, RATERS, source="raters.path=w.csv").tolist() == [0.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*GIVEN, {"rater": "bobb", "weight": 1}], "rater 'bobb' judged nothing in data.train; did you mean 'bob'?"),
        (GIVEN[:2], "no weight for rater 'ada'"),
        ([*GIVEN[:2], {"rater": "ada"}], "row 2: field 'weight' is missing"),
        ([*GIVEN, GIVEN[0]], "row 3: rater 'bob' stands twice"),
        ([*GIVEN[:2], {"rater": "ada", "weight": -1}], "row 2: weight is -1"),
        ([*GIVEN[:2], {"rater": "ada", "weight": float("nan")}], "row 2: weight is nan"),
        ([*GIVEN[:2], {"rater": "ada", "weight": "much"}], "row 2: weight is 'much'"),
    ],
)
def test_a_weight_file_that_does_not_fit_the_raters_is_refused(rows, message):
    with pytest.raises(ValueError, match=r"^raters\.path=w\.csv") as error:
        weights_from_rows(rows, RATERS, source="raters.path=w.csv")

    assert message in str(error.value)
    assert "\n" not in str(error.value)
