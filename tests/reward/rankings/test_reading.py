import math

import pytest

from reward.rankings.config import BattlesFormat, ScoredFormat, VotesFormat
from reward.rankings.judgements import Judgement, order_of
from reward.rankings.reading import judgements_from_rows


def read(rows, format, **options):
    return judgements_from_rows(rows, format, source="data.train=x.jsonl", **options)


def texts(judged):
    return [response.text for response in judged.responses]


@pytest.mark.parametrize(
    ("margin", "ranking"),
    [(0.0, ((2,), (0, 3), (1,))), (0.5, ((2,), (0, 1, 3))), (1.4, ((0, 2, 3), (1,))), (9.0, ((0, 1, 2, 3),))],
)
def test_values_within_the_margin_of_the_best_of_their_group_tie(margin, ranking):
    assert order_of([2.0, 1.5, 3.4, 2.0], tie_margin=margin) == ranking


# --- scored ---------------------------------------------------------------------------------------------------------


def test_scored_responses_of_a_row_become_a_ranking():
    row = {
        "prompt": "p",
        "responses": [{"text": "a", "score": 1}, {"text": "b", "score": 3.5}, {"text": "c", "score": 1}],
    }

    judged = read([row], ScoredFormat())

    assert judged.judgements == [Judgement(((1,), (0, 2)), prompt=0)]
    assert [response.score for response in judged.responses] == [1.0, 3.5, 1.0]
    assert (judged.prompts, judged.models, judged.raters) == (["p"], [], [])


def test_scores_may_stand_beside_the_texts_and_ties_be_wide():
    row = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 1.3, 0.0]}

    assert read([row], ScoredFormat(tie_margin=0.5)).judgements == [Judgement(((0, 1), (2,)), prompt=0)]


def test_one_response_a_row_is_put_together_by_prompt():
    rows = [
        {"prompt": "p", "response": "a", "helpfulness": 1, "model": "m"},
        {"prompt": "q", "response": "c", "helpfulness": 0},
        {"prompt": "p", "response": "b", "helpfulness": 2},
        {"prompt": "q", "response": "d", "helpfulness": 5},
        {"prompt": "p", "response": "a", "helpfulness": 4, "model": "m"},
    ]

    judged = read(rows, ScoredFormat(score_field="helpfulness"))

    assert texts(judged) == ["a", "b", "c", "d"]
    assert [response.score for response in judged.responses] == [2.5, 2.0, 0.0, 5.0]
    assert judged.judgements == [Judgement(((0,), (1,)), prompt=0), Judgement(((3,), (2,)), prompt=1)]
    assert (judged.models, judged.responses[0].model, judged.responses[1].model) == (["m"], 0, None)


def test_with_raters_each_ones_scores_become_a_ranking_of_what_they_scored():
    rows = [
        {"prompt": "p", "responses": ["a", "b"], "scores": [9, 8], "rater": "strict"},
        {"prompt": "p", "responses": ["b", "a", "c"], "scores": [2, 1, 3], "rater": "mild"},
        {"prompt": "p", "response": "c", "score": 1, "rater": 3},
    ]

    judged = read(rows, ScoredFormat(rater_field="rater"))

    assert judged.judgements == [Judgement(((0,), (1,)), 0, 0), Judgement(((2,), (1,), (0,)), 0, 1)]
    assert judged.raters == ["strict", "mild"]
    assert judged.responses[0].score is None


# --- votes ----------------------------------------------------------------------------------------------------------


def test_votes_of_many_raters_stand_in_one_row():
    row = {
        "prompt": "p",
        "responses": ["a", {"text": "b", "model": "m"}, "c"],
        "votes": [
            {"rater": "ada", "ranking": [[2], [0, 1]]},
            {"rater": "bob", "choice": 1},
            {"rater": "ada", "choice": "tie"},
            {"rater": "cyd", "ranking": [1, 0, 2]},
        ],
    }

    judged = read([row], VotesFormat())

    assert judged.judgements == [
        Judgement(((2,), (0, 1)), 0, 0),
        Judgement(((1,), (0, 2)), 0, 1, is_choice=True),
        Judgement(((0, 1, 2),), 0, 0),
        Judgement(((1,), (0,), (2,)), 0, 2),
    ]
    assert judged.raters == ["ada", "bob", "cyd"]


def test_votes_on_different_responses_to_one_prompt_are_put_together():
    prompt = [{"role": "user", "content": "who ran?"}]
    rows = [
        {"prompt": prompt, "responses": ["a", "b"], "rater": 1, "choice": 0},
        {"prompt": "other", "responses": ["x", "y"], "rater": 1, "choice": 1},
        {"prompt": prompt, "responses": ["c", "b"], "rater": 2, "choice": 0},
    ]

    judged = read(rows, VotesFormat())

    assert texts(judged) == ["a", "b", "c", "x", "y"]
    assert [judgement.ranking for judgement in judged.judgements] == [((0,), (1,)), ((2,), (1,)), ((4,), (3,))]
    assert judged.prompts == [prompt, "other"]


def test_votes_may_be_anonymous():
    row = {"prompt": "p", "responses": ["a", "b"], "choice": 1}

    assert read([row], VotesFormat(rater_field=None)).raters == []


# --- battles --------------------------------------------------------------------------------------------------------

BATTLE = {"model_a": "ant", "model_b": "bee", "winner": "model_b"}


def test_a_battle_is_a_ranking_of_two_models():
    rows = [BATTLE, BATTLE | {"winner": "tie (bothbad)"}, BATTLE | {"winner": "a", "model_b": "cat", "judge": "ada"}]

    judged = read(rows, BattlesFormat())
    between, indices = judged.between_models()

    assert judged.models == ["ant", "bee", "cat"]
    assert [judgement.ranking for judgement in between] == [((1,), (0,)), ((0, 1),), ((0,), (2,))]
    assert [judgement.prompt for judgement in between] == indices == [0, 1, 2]


@pytest.mark.parametrize("prompt", [{}, {"prompt": None}, {"prompt": ""}])
def test_battles_without_a_prompt_are_about_different_things(prompt):
    assert len(read([BATTLE | prompt] * 3, BattlesFormat()).prompts) == 3


def test_battles_about_one_question_share_its_responses():
    rows = [BATTLE | {"question_id": 81, "judge": "ada"}, BATTLE | {"question_id": 81, "judge": "bob", "winner": "a"}]

    judged = read(rows, BattlesFormat(rater_field="judge", prompt_field="question_id"))

    assert len(judged.responses) == 2
    assert judged.judgements == [Judgement(((1,), (0,)), 0, 0), Judgement(((0,), (1,)), 0, 1)]


def test_a_model_that_stands_twice_counts_with_its_better_response():
    responses = [
        {"text": text, "model": model} for text, model in zip("abcd", ("ant", "bee", "ant", "cat"), strict=True)
    ]
    rows = [{"prompt": "p", "responses": responses, "choice": 2}]
    rows += [{"prompt": "q", "responses": [responses[0], responses[2]], "choice": 0}]

    between, indices = read(rows, VotesFormat(rater_field=None)).between_models()

    assert between == [Judgement(((0,), (1, 2)), 0, is_choice=True)]
    assert indices == [0]


# --- bad rows -------------------------------------------------------------------------------------------------------

SCORED = {"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 2, 3]}
VOTES = {"prompt": "p", "responses": ["a", "b", "c"], "rater": "ada", "ranking": [[0], [1], [2]]}
CHOICE = {"prompt": "p", "responses": ["a", "b", "c"], "rater": "ada"}


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        (ScoredFormat(), SCORED | {"scores": [1, math.nan, 3]}, "field 'scores[1]' is nan; a score is a finite number"),
        (ScoredFormat(), SCORED | {"scores": [1, 2, "N/A"]}, "field 'scores[2]' is 'N/A'"),
        (ScoredFormat(), SCORED | {"scores": [1, 2]}, "a list of 3 numbers is needed"),
        (ScoredFormat(), SCORED | {"scores": [2, 2, 2]}, "the scores tie all responses"),
        (ScoredFormat(), SCORED | {"responses": ["a"], "scores": [1]}, "K = 1; a list of at least 2 can be ranked"),
        (ScoredFormat(), SCORED | {"responses": ["a", " ", "c"]}, "field 'responses[1]' is empty"),
        (ScoredFormat(), SCORED | {"responses": ["a", "b", "a"]}, "responses 0 and 2 are identical"),
        (ScoredFormat(), SCORED | {"prompt": None}, "field 'prompt' is null"),
        (ScoredFormat(), {"prompt": "p", "response": "a", "score": 1}, "one scored response, K = 1"),
        (ScoredFormat(), {"prompt": "p", "response": "a", "score": math.inf}, "field 'score' is inf"),
        (ScoredFormat(), {"prompt": "p", "response": "", "score": 1}, "field 'response' is empty"),
        (
            ScoredFormat(),
            {"prompt": "p", "responses": [{"text": "a", "score": 1}, {"text": "b"}]},
            "field 'score' is missing",
        ),
        (ScoredFormat(rater_field="rater"), SCORED, "field 'rater' is missing"),
        (VotesFormat(), VOTES | {"ranking": [[0], [1]]}, "each of 0..2 exactly once"),
        (VotesFormat(), VOTES | {"ranking": [[0], [1, 1], [2]]}, "each of 0..2 exactly once"),
        (VotesFormat(), VOTES | {"responses": ["a"], "ranking": [[0]]}, "K = 1"),
        (VotesFormat(), VOTES | {"responses": ["a", "", "c"]}, "field 'responses[1]' is empty"),
        (VotesFormat(), VOTES | {"choice": 1}, "a vote has both of 'ranking' and 'choice'"),
        (VotesFormat(), CHOICE, "a vote has neither of 'ranking' and 'choice'"),
        (VotesFormat(), CHOICE | {"choice": 3}, "field 'choice' is 3; allowed are an index from 0 to 2, or 'tie'"),
        (VotesFormat(), CHOICE | {"choice": True}, "field 'choice' is True"),
        (VotesFormat(), CHOICE | {"rater": None, "choice": 1}, "field 'rater' is null"),
        (VotesFormat(), CHOICE | {"rater": [], "choice": 1}, "field 'rater' is []"),
        (VotesFormat(), CHOICE | {"votes": []}, "field 'votes' is []"),
        (BattlesFormat(), BATTLE | {"winner": "bee"}, "field 'winner' is 'bee'; allowed are 'model_a', 'model_b'"),
        (BattlesFormat(), BATTLE | {"model_b": "ant"}, "a model cannot meet itself"),
        (BattlesFormat(), BATTLE | {"model_a": 3}, "field 'model_a' is 3"),
        (BattlesFormat(), {"model_a": "ant", "winner": "a"}, "field 'model_b' is missing"),
        (BattlesFormat(), BATTLE | {"prompt": "p", "response_a": "x"}, "field 'response_b' is missing"),
        (BattlesFormat(), BATTLE | {"prompt": "p", "response_a": "x", "response_b": ""}, "field 'response_b' is empty"),
        (BattlesFormat(), BATTLE | {"response_a": "x", "response_b": "y"}, "field 'prompt' is missing"),
    ],
)
def test_a_bad_row_is_named_and_can_be_skipped(format, row, message):
    with pytest.raises(ValueError, match=r"^data\.train=x\.jsonl, row 0: ") as error:
        read([row], format)
    assert message in str(error.value)
    assert "data.on_bad_row=skip" in str(error.value)
    assert "\n" not in str(error.value)

    good = {"scored": SCORED | {"rater": "bob"}, "votes": VOTES, "battles": BATTLE}[format.kind] | {"prompt": "good"}
    judged = read([row, good], format, on_bad_row="skip")
    assert judged.prompts == ["good"]
    assert len(judged.skipped) == 1
    assert message in judged.skipped[0]


def test_data_without_a_good_row_is_refused_even_when_skipping():
    with pytest.raises(ValueError, match="no usable row"):
        read([SCORED | {"scores": [1, 1, 1]}], ScoredFormat(), on_bad_row="skip")
