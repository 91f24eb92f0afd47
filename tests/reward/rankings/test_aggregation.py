import numpy as np
import pytest

from reward.config import PairsFormat, RankingsFormat
from reward.preferences import comparisons_from_rows
from reward.rankings.aggregation import pair_rows, rank_prompts, ranking_row
from reward.rankings.bradley_terry import bradley_terry
from reward.rankings.config import BattlesFormat, ScoredFormat, VotesFormat
from reward.rankings.reading import judgements_from_rows


def voted(responses, *rankings, prompt="p"):
    votes = [{"ranking": ranking} for ranking in rankings]
    return {"prompt": prompt, "responses": responses, "votes": votes}


def aggregate(rows, format=None, *, tie_margin=0.0):
    judged = judgements_from_rows(rows, format or VotesFormat(rater_field=None), source="votes")
    model = bradley_terry(judged.judgements, len(judged.responses))
    fit = model.fit(np.ones(len(judged.judgements)), prior_std=1.0)
    return rank_prompts(judged, fit, tie_margin=tie_margin)


FIRST, SECOND, TIE = [[0], [1]], [[1], [0]], [[0, 1]]


def test_a_majority_of_votes_decides_with_the_margin_and_weight_worked_by_hand():
    (found,) = aggregate([voted(["a", "b"], FIRST, FIRST, SECOND)]).prompts

    (row,) = pair_rows(found)
    # The maximum of 2 log sigmoid(d) + log sigmoid(-d) - d^2 / 4: there 3 sigmoid(d) + d / 2 = 2.
    margin = row["margin"]
    chance = 1 / (1 + np.exp(-margin))
    assert 3 * chance + margin / 2 == pytest.approx(2.0, abs=1e-6)
    error = (3 * chance * (1 - chance) + 0.5) ** -0.5
    assert row["weight"] == pytest.approx(2 * _normal_cdf(margin / error) - 1)
    assert row["win_probability"] == pytest.approx(chance)
    assert (row["chosen"], row["rejected"], row["prompt"]) == ("a", "b", "p")
    assert "chosen_model" not in row


def _normal_cdf(z):
    grid = np.linspace(-12, z, 200_001)
    return np.trapezoid(np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), grid)


def test_more_and_clearer_votes_weigh_more():
    rows = [
        voted(["a", "b"], FIRST, prompt="one"),
        voted(["a", "b"], FIRST, FIRST, FIRST, SECOND, prompt="three of four"),
        voted(["a", "b"], *[FIRST] * 12, *[SECOND] * 4, prompt="twelve of sixteen"),
    ]

    weights = [next(pair_rows(found))["weight"] for found in aggregate(rows).prompts]

    assert weights == sorted(weights)
    assert 0 < weights[0] < 0.6 < 0.9 < weights[2] < 1


def test_votes_on_overlapping_pairs_become_one_ranking():
    rows = [voted(["a", "b"], FIRST, FIRST), voted(["c", "b"], SECOND, SECOND)]

    (found,) = aggregate(rows).prompts
    row = ranking_row(found)

    assert row["responses"] == ["a", "b", "c"]
    assert row["ranking"] == [[0], [1], [2]]
    assert row["strengths"][1] == pytest.approx(0.0, abs=1e-6)
    assert row["judgements"] == 4
    assert len(row["standard_errors"]) == 3


def test_prompts_whose_votes_cancel_out_are_counted_and_left_out():
    found = aggregate([voted(["a", "b"], FIRST, SECOND), voted(["c", "d"], TIE, FIRST, prompt="q")])

    assert [one.prompt for one in found.prompts] == ["q"]
    assert found.tied == 1


def test_a_tie_margin_joins_close_responses():
    rows = [voted(["a", "b"], *[FIRST] * 5, *[SECOND] * 4), voted(["c", "d"], FIRST, FIRST, FIRST, prompt="q")]

    assert len(aggregate(rows).prompts) == 2
    assert [one.prompt for one in aggregate(rows, tie_margin=0.3).prompts] == ["q"]


def test_plain_scores_are_their_own_strengths_and_weigh_one():
    row = {"prompt": "p", "responses": [{"text": "a", "score": 1.5, "model": "ant"}, {"text": "b", "score": 4}]}
    judged = judgements_from_rows([row], ScoredFormat(), source="scores")

    (found,) = rank_prompts(judged, None, tie_margin=0.0).prompts

    assert list(pair_rows(found)) == [
        {
            "prompt": "p",
            "chosen": "b",
            "rejected": "a",
            "margin": 2.5,
            "weight": 1.0,
            "chosen_model": None,
            "rejected_model": "ant",
        }
    ]
    assert ranking_row(found)["models"] == ["ant", None]
    assert "standard_errors" not in ranking_row(found)


def test_logs_without_texts_and_repeated_texts_are_counted():
    battle = {"model_a": "ant", "model_b": "bee", "winner": "a"}
    rows = [
        battle,
        battle | {"prompt": "p", "response_a": "x", "response_b": "y"},
        battle | {"prompt": "q", "response_a": "same", "response_b": "same"},
    ]

    found = aggregate(rows, BattlesFormat())

    assert (found.without_text, found.repeated, found.tied) == (1, 1, 1)
    assert [one.responses for one in found.prompts] == [("x", "y")]


def test_what_is_written_is_what_the_reward_stage_reads(tiny_tokenizer):
    found = aggregate([voted(["a", "b", "c"], [[1], [0, 2]], [[1], [2], [0]])]).prompts

    rows = [ranking_row(one) for one in found]
    pairs = [row for one in found for row in pair_rows(one)]
    rankings = comparisons_from_rows(rows, RankingsFormat(), tokenizer=tiny_tokenizer, source="r")
    pairs = comparisons_from_rows(pairs, PairsFormat(), tokenizer=tiny_tokenizer, source="p")

    (comparison,) = rankings.comparisons
    assert (comparison.prompt, comparison.responses, comparison.ranking) == ("p", ("a", "b", "c"), ((1,), (2,), (0,)))
    assert [pair.responses for pair in pairs.comparisons] == [("b", "c"), ("b", "a"), ("c", "a")]
    assert all(0.5 < pair.win_probability < 1 and 0 < pair.weight < 1 for pair in pairs.comparisons)
    assert comparison.strengths == tuple(found[0].strengths)
