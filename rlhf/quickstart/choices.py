"""Questions of the quickstart world as multiple choice: one true statement among statements of other facts.

Owns the wrong choices. Every choice is a short sentence of the same form, so only the story tells which one is true.
"""

import random
from dataclasses import replace
from typing import TypedDict

from rlhf.quickstart import vocabulary
from rlhf.quickstart.grammar import Visit
from rlhf.quickstart.questions import Question

CHOICES = 4


class ChoiceRow(TypedDict):
    """One question; `answer` is an index of `choices`."""

    question: str
    choices: list[str]
    answer: int


def choice_row(question: Question, rng: random.Random) -> ChoiceRow:
    """The question with its true statement and three others, in random order."""
    right = statement(question, question.visit)
    statements = [right]
    while len(statements) < CHOICES:
        other = statement(question, _elsewhere(question, rng))
        statements += [other] if other not in statements else []
    rng.shuffle(statements)
    asked = question.prompt.rpartition("\n")[0]
    return {"question": asked, "choices": statements, "answer": statements.index(right)}


def statement(question: Question, visit: Visit) -> str:
    """The answer to the question as a short sentence, where `visit` tells the facts."""
    if question.told == "place":
        return f"{visit.name} is at the {visit.place}"
    return f"{visit.name} has the {visit.colour} {visit.thing}"


def _elsewhere(question: Question, rng: random.Random) -> Visit:
    """The visit with another fact in place of the one that is asked for."""
    if question.asked == "name":
        return replace(question.visit, name=rng.choice(vocabulary.NAMES))
    if question.asked == "place":
        return replace(question.visit, place=rng.choice(vocabulary.PLACES))
    return replace(question.visit, colour=rng.choice(vocabulary.COLOURS), thing=rng.choice(vocabulary.THINGS))
