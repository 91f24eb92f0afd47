"""Verifiable rewards: rules that read the response, and nothing else, or one column of the data row.

Each rule maps one request to a number, or raises `UnscorableError` where the request lacks what the rule needs.
Combining rules is `reward.composite`; arbitrary Python is `reward.functions`.
"""

import re

from reward.config import ExactAnswerRule, LengthRule, RegexRule
from reward.interface import RewardRequest

RuleConfig = RegexRule | LengthRule | ExactAnswerRule


class UnscorableError(Exception):
    """A request lacks what a rule needs; the message says what. Becomes a `RewardFailure`, never a score."""


def apply_rule(rule: RuleConfig, request: RewardRequest) -> float:
    """The score of one request under one rule (see the rule's configuration class for its formula).

    Raises:
        UnscorableError: the request cannot be scored.
    """
    if isinstance(rule, RegexRule):
        return float(re.search(rule.pattern, request.response) is not None)
    if isinstance(rule, LengthRule):
        return _length_score(rule, len(request.response.split()))
    return _exact_answer_score(rule, request)


def _length_score(rule: LengthRule, words: int) -> float:
    missing, excess = max(0, rule.minimum_words - words), max(0, words - rule.maximum_words)
    return -float(missing + excess)


def _exact_answer_score(rule: ExactAnswerRule, request: RewardRequest) -> float:
    value = request.fields.get(rule.field)
    answer = "" if value is None else str(value).strip().lower()  # `value or ""` would lose the answer 0.
    if not answer:
        raise UnscorableError(f"field {rule.field!r} of the data row is missing or empty")
    return float(request.response.strip().lower().endswith(answer))
