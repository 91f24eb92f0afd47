"""Verifiable rewards: rules that read the response, and nothing else, or one column of the data row.

Each rule maps one request to a number, or raises `UnscorableError` where the request lacks what the rule needs. The
formula of a rule stands in its configuration class, the reading of answers is `reward.answers`, combining rules
`reward.composite`, arbitrary Python `reward.functions`. What a response costs that was cut off before its end of
sequence is no rule of a response's text: PPO has `algorithm.missing_eos` for it.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from reward.answers import ends_with_answer, has_exactly_sections, last_number, last_section
from reward.config import (
    ExactAnswerRule,
    FormatRule,
    LengthPenaltyRule,
    LengthRule,
    NumericAnswerRule,
    RegexRule,
)
from reward.interface import RewardRequest

RuleConfig = RegexRule | LengthRule | LengthPenaltyRule | FormatRule | ExactAnswerRule | NumericAnswerRule


class UnscorableError(Exception):
    """A request lacks what a rule needs; the message says what. Becomes a `RewardFailure`, never a score."""


def apply_rule(rule: RuleConfig, request: RewardRequest) -> float:
    """The score of one request under one rule (see the rule's configuration class for its formula).

    Raises:
        UnscorableError: the request cannot be scored.
    """
    return _SCORES[type(rule)](rule, request)


def _regex_score(rule: RegexRule, request: RewardRequest) -> float:
    return float(re.search(rule.pattern, request.response) is not None)


def _length_score(rule: LengthRule, request: RewardRequest) -> float:
    words = len(request.response.split())
    missing, excess = max(0, rule.minimum_words - words), max(0, words - rule.maximum_words)
    return float(-(missing + excess))


def _length_penalty(rule: LengthPenaltyRule, request: RewardRequest) -> float:
    if request.response_ids is None:
        raise UnscorableError("the request holds text and no token ids, in which length_penalty counts")
    excess = len(request.response_ids) - rule.free_tokens
    return -min(1.0, max(0, excess) / (rule.maximum_tokens - rule.free_tokens))


def _format_score(rule: FormatRule, request: RewardRequest) -> float:
    return float(has_exactly_sections(request.response, rule.sections))


def _exact_answer_score(rule: ExactAnswerRule, request: RewardRequest) -> float:
    answer, said = _right_answer(rule, request), _said(rule, request)
    return float(said is not None and ends_with_answer(said, answer))


def _numeric_answer_score(rule: NumericAnswerRule, request: RewardRequest) -> float:
    answer = last_number(_right_answer(rule, request), percent=rule.percent)
    if answer is None:
        raise UnscorableError(f"field {rule.field!r} of the data row holds no number")
    said = _said(rule, request)
    number = None if said is None else last_number(said, percent=rule.percent)
    # As it is written: 0.3 in binary is a little less than 0.3.
    absolute, relative = (Fraction(str(share)) for share in (rule.absolute_tolerance, rule.relative_tolerance))
    return float(number is not None and abs(number - answer) <= max(absolute, relative * abs(answer)))


def _right_answer(rule: ExactAnswerRule | NumericAnswerRule, request: RewardRequest) -> str:
    value = request.fields.get(rule.field)
    answer = "" if value is None else str(value).strip()  # `value or ""` would lose the answer 0.
    if not answer:
        raise UnscorableError(f"field {rule.field!r} of the data row is missing or empty")
    return answer


def _said(rule: ExactAnswerRule | NumericAnswerRule, request: RewardRequest) -> str | None:
    return request.response if rule.section is None else last_section(request.response, rule.section)


_SCORES: dict[type[Any], Callable[[Any, RewardRequest], float]] = {
    RegexRule: _regex_score,
    LengthRule: _length_score,
    LengthPenaltyRule: _length_penalty,
    FormatRule: _format_score,
    ExactAnswerRule: _exact_answer_score,
    NumericAnswerRule: _numeric_answer_score,
}
