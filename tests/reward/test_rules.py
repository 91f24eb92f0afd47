import numpy as np
import pytest

from reward.config import ExactAnswerRule, FormatRule, LengthPenaltyRule, LengthRule, NumericAnswerRule, RegexRule
from reward.interface import RewardRequest
from reward.rules import UnscorableError, apply_rule


def request(response, **fields):
    return RewardRequest("prompt", response, fields=fields)


@pytest.mark.parametrize(("response", "score"), [("it is 42.", 1.0), ("it is four", 0.0), ("", 0.0)])
def test_a_regex_scores_one_where_it_is_found(response, score):
    assert apply_rule(RegexRule(pattern=r"\d+"), request(response)) == score


@pytest.mark.parametrize(("words", "score"), [(0, -2.0), (1, -1.0), (2, 0.0), (4, 0.0), (7, -3.0)])
def test_length_costs_one_for_each_word_outside_the_bounds(words, score):
    rule = LengthRule(minimum_words=2, maximum_words=4)

    assert apply_rule(rule, request("word " * words)) == score


@pytest.mark.parametrize(("tokens", "score"), [(1, 0.0), (10, 0.0), (11, -0.25), (13, -0.75), (14, -1.0), (99, -1.0)])
def test_a_length_penalty_grows_in_a_straight_line_to_minus_one(tokens, score):
    rule = LengthPenaltyRule(free_tokens=10, maximum_tokens=14)

    assert apply_rule(rule, RewardRequest("", "text", response_ids=np.ones(tokens, np.int32))) == score


def test_a_length_penalty_without_tokens_is_no_score():
    with pytest.raises(UnscorableError, match="no token ids"):
        apply_rule(LengthPenaltyRule(free_tokens=10, maximum_tokens=14), request("text"))


def test_a_format_scores_one_where_it_is_kept():
    rule = FormatRule(sections=("think", "answer"))

    assert apply_rule(rule, request("<think>a</think> <answer>b</answer>")) == 1.0
    assert apply_rule(rule, request("<answer>b</answer>")) == 0.0


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [(" It is Paris\n", "paris", 1.0), ("Paris, I think", "paris", 0.0), ("so 0", 0, 1.0), ("so 10", "0", 0.0)],
)
def test_an_exact_answer_must_end_the_response(response, answer, score):
    assert apply_rule(ExactAnswerRule(), request(response, answer=answer)) == score


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [
        ("3 boxes of 4 make 12.", 12, 1.0),
        ("that is 1,200", "1200", 1.0),
        ("12 eggs in 3 boxes", 12, 0.0),
        ("a dozen", 12, 0.0),
        ("3/4", 0.75, 1.0),
        ("0.3", "3/10", 1.0),
        ("0.33", "1/3", 0.0),
        ("50%", "50", 1.0),
        ("0.5", "50%", 0.0),
        ("7", "Two and five make 7.\n#### 7", 1.0),
    ],
)
def test_a_numeric_answer_is_the_last_number_and_exact(response, answer, score):
    assert apply_rule(NumericAnswerRule(), request(response, answer=answer)) == score


@pytest.mark.parametrize(("said", "score"), [("200", 1.0), ("202", 1.0), ("198", 1.0), ("202.1", 0.0), ("197.9", 0.0)])
def test_a_relative_tolerance_is_a_share_of_the_right_answer(said, score):
    rule = NumericAnswerRule(relative_tolerance=0.01, absolute_tolerance=0.5)

    assert apply_rule(rule, request(said, answer=200)) == score


@pytest.mark.parametrize(("said", "score"), [("1.3", 1.0), ("0.7", 1.0), ("1.31", 0.0)])
def test_a_tolerance_is_the_decimal_that_was_written(said, score):
    rule = NumericAnswerRule(relative_tolerance=0.01, absolute_tolerance=0.3)

    assert apply_rule(rule, request(said, answer=1)) == score


def test_percent_can_be_hundredths():
    rule = NumericAnswerRule(percent="hundredths")

    assert apply_rule(rule, request("0.5", answer="50%")) == 1.0
    assert apply_rule(rule, request("50", answer="50%")) == 0.0


@pytest.mark.parametrize("rule", [ExactAnswerRule(section="answer"), NumericAnswerRule(section="answer")])
@pytest.mark.parametrize(
    ("response", "score"),
    [("<answer>12</answer> of 13", 1.0), ("<answer>13</answer> or 12", 0.0), ("12", 0.0)],
)
def test_an_answer_can_be_asked_for_in_a_section(rule, response, score):
    assert apply_rule(rule, request(response, answer="12")) == score


@pytest.mark.parametrize("rule", [ExactAnswerRule(), NumericAnswerRule()])
@pytest.mark.parametrize("fields", [{}, {"answer": None}, {"answer": "  "}])
def test_a_row_without_an_answer_has_no_score(rule, fields):
    with pytest.raises(UnscorableError, match="'answer'"):
        apply_rule(rule, request("anything", **fields))


def test_a_row_without_a_number_has_no_score():
    with pytest.raises(UnscorableError, match="field 'result' of the data row holds no number"):
        apply_rule(NumericAnswerRule(field="result"), request("12", result="twelve"))


def test_rules_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="exceeds maximum_words=2"):
        LengthRule(minimum_words=3, maximum_words=2)
    with pytest.raises(ValueError, match="is no regular expression"):
        RegexRule(pattern="(")
    with pytest.raises(ValueError, match="free_tokens=5 must be below maximum_tokens=5"):
        LengthPenaltyRule(free_tokens=5, maximum_tokens=5)
    with pytest.raises(ValueError, match="names one twice"):
        FormatRule(sections=("answer", "answer"))
