import pytest

from reward.config import ExactAnswerRule, LengthRule, RegexRule
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


@pytest.mark.parametrize(
    ("response", "answer", "score"),
    [(" It is Paris\n", "paris", 1.0), ("Paris, I think", "paris", 0.0), ("so 0", 0, 1.0), ("so 10", "0", 1.0)],
)
def test_an_exact_answer_must_end_the_response(response, answer, score):
    assert apply_rule(ExactAnswerRule(), request(response, answer=answer)) == score


@pytest.mark.parametrize("fields", [{}, {"answer": None}, {"answer": "  "}])
def test_a_row_without_an_answer_has_no_score(fields):
    with pytest.raises(UnscorableError, match="'answer'"):
        apply_rule(ExactAnswerRule(), request("anything", **fields))


def test_rules_that_no_response_could_satisfy_are_refused():
    with pytest.raises(ValueError, match="exceeds maximum_words=2"):
        LengthRule(minimum_words=3, maximum_words=2)
    with pytest.raises(ValueError, match="is no regular expression"):
        RegexRule(pattern="(")
