"""Who wrote the demonstrations: six simulated writers, their habits, and how a `Style` becomes an answer.

A writer makes five independent choices an answer: how to open, whether the fact is right, which reason to give, in what
shape, how to close. The demonstrations mix the writers, so a model tuned on them is mediocre on purpose: every good
habit is common in them, and an answer with all of them is rare. That rarity is exact (`style_probability`), and so is
the KL that a policy pays for writing only the best answers: -ln P(best), in nats per sequence.
"""

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from rlhf.quickstart import vocabulary
from rlhf.quickstart.grammar import Reason
from rlhf.quickstart.questions import Question

Opening = Literal["plain", "warm", "rude"]
Fact = Literal["right", "wrong", "vague"]
ReasonGiven = Literal["none", "true", "false"]
Shape = Literal["sentence", "fragment", "repeated"]
Closing = Literal["none", "warm", "rude", "ramble"]
Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, slots=True)
class Style:
    """The five choices that make one answer."""

    opening: Opening
    fact: Fact
    reason: ReasonGiven
    shape: Shape
    closing: Closing


@dataclass(frozen=True, slots=True)
class Writer:
    """A writer's share of the demonstrations and the probability of each of their choices (0 for those not listed)."""

    name: str
    share: float
    opening: Mapping[Opening, float]
    fact: Mapping[Fact, float]
    reason: Mapping[ReasonGiven, float]
    shape: Mapping[Shape, float]
    closing: Mapping[Closing, float]

    def sample_style(self, rng: random.Random) -> Style:
        """Draw the five choices independently."""
        return Style(
            opening=_draw(self.opening, rng),
            fact=_draw(self.fact, rng),
            reason=_draw(self.reason, rng),
            shape=_draw(self.shape, rng),
            closing=_draw(self.closing, rng),
        )

    def style_probability(self, style: Style) -> float:
        """Probability that this writer makes exactly these choices."""
        return (
            self.opening.get(style.opening, 0.0)
            * self.fact.get(style.fact, 0.0)
            * self.reason.get(style.reason, 0.0)
            * self.shape.get(style.shape, 0.0)
            * self.closing.get(style.closing, 0.0)
        )


WRITERS = (
    Writer(
        name="kind",
        share=0.20,
        opening={"warm": 0.7, "plain": 0.3},
        fact={"right": 0.7, "wrong": 0.15, "vague": 0.15},
        reason={"none": 0.9, "true": 0.06, "false": 0.04},
        shape={"sentence": 0.9, "repeated": 0.1},
        closing={"none": 0.35, "warm": 0.35, "ramble": 0.3},
    ),
    Writer(
        name="scholar",
        share=0.20,
        opening={"plain": 0.87, "warm": 0.03, "rude": 0.1},
        fact={"right": 0.8, "wrong": 0.15, "vague": 0.05},
        reason={"none": 0.1, "true": 0.75, "false": 0.15},
        shape={"sentence": 0.8, "fragment": 0.1, "repeated": 0.1},
        closing={"none": 0.57, "ramble": 0.4, "warm": 0.03},
    ),
    Writer(
        name="curt",
        share=0.15,
        opening={"plain": 0.9, "rude": 0.1},
        fact={"right": 0.75, "wrong": 0.2, "vague": 0.05},
        reason={"none": 0.9, "true": 0.1},
        shape={"sentence": 0.3, "fragment": 0.7},
        closing={"none": 0.95, "rude": 0.05},
    ),
    Writer(
        name="rambling",
        share=0.15,
        opening={"plain": 0.75, "warm": 0.25},
        fact={"right": 0.6, "wrong": 0.2, "vague": 0.2},
        reason={"none": 0.4, "true": 0.35, "false": 0.25},
        shape={"sentence": 0.6, "repeated": 0.4},
        closing={"none": 0.1, "warm": 0.1, "ramble": 0.8},
    ),
    Writer(
        name="rude",
        share=0.15,
        opening={"rude": 0.8, "plain": 0.2},
        fact={"right": 0.65, "wrong": 0.2, "vague": 0.15},
        reason={"none": 0.7, "true": 0.2, "false": 0.1},
        shape={"sentence": 0.6, "fragment": 0.4},
        closing={"none": 0.45, "rude": 0.55},
    ),
    Writer(
        name="mistaken",
        share=0.15,
        opening={"plain": 0.8, "warm": 0.2},
        fact={"right": 0.15, "wrong": 0.65, "vague": 0.2},
        reason={"none": 0.4, "true": 0.15, "false": 0.45},
        shape={"sentence": 0.7, "fragment": 0.15, "repeated": 0.15},
        closing={"none": 0.75, "warm": 0.1, "ramble": 0.15},
    ),
)
"""The mixture behind the demonstrations; shares sum to 1."""

BEST_WRITER = Writer(
    name="best",
    share=0.0,
    opening={"warm": 1.0},
    fact={"right": 1.0},
    reason={"true": 1.0},
    shape={"sentence": 1.0},
    closing={"none": 0.7, "warm": 0.3},
)
"""What the hidden preference likes most. Writes no demonstration."""


def all_styles() -> Iterator[Style]:
    """Every combination of the five choices."""
    choices = (Opening, Fact, ReasonGiven, Shape, Closing)
    for combination in itertools.product(*(get_args(choice) for choice in choices)):
        yield Style(*combination)


def style_probability(style: Style) -> float:
    """Probability of `style` under the mixture: sum over writers of share x product of habits."""
    return sum(writer.share * writer.style_probability(style) for writer in WRITERS)


def sample_writer(rng: random.Random) -> Writer:
    """Draw a writer of the mixture in proportion to their share."""
    (writer,) = rng.choices(WRITERS, weights=[writer.share for writer in WRITERS])
    return writer


def write(question: Question, style: Style, rng: random.Random) -> str:
    """Answer `question` in `style`; 2 to 30 words, without the space that separates it from the prompt."""
    core = _core(question, style, rng)
    if style.shape == "repeated":
        core = f"{core}, i say, {core}"
    reason = _reason(question.reason, style.reason, rng)
    parts = (_opening(style.opening, rng), f"{core}{reason}.", _closing(style.closing, rng))
    return " ".join(part for part in parts if part)


def _core(question: Question, style: Style, rng: random.Random) -> str:
    """The answer proper: a sentence, or the bare noun phrase when the shape is a fragment."""
    facts = {field: getattr(question.visit, field) for field in vocabulary.VISIT_WORDS}
    if style.fact == "wrong":
        facts[question.asked] = _mistake(question, rng)
    name, thing, place = facts["name"], f"the {facts['colour']} {facts['thing']}", f"at the {facts['place']}"
    if style.fact == "vague":
        name, thing, place = _blur(question, name, thing, place)
    if style.shape == "fragment":
        return {"name": name, "thing": thing, "place": place}[question.asked]
    return f"{name} is {place}" if question.told == "place" else f"{name} has {thing}"


def _blur(question: Question, name: str, thing: str, place: str) -> tuple[str, str, str]:
    if question.asked == "name":
        return "somebody", thing, place
    if question.asked == "thing":
        return name, "something or other", place
    return name, thing, "somewhere or other"


def _mistake(question: Question, rng: random.Random) -> str:
    """A wrong word of the kind asked for."""
    return rng.choice([word for word in vocabulary.VISIT_WORDS[question.asked] if word != question.answer])


def _reason(reason: Reason, given: ReasonGiven, rng: random.Random) -> str:
    if given == "none":
        return ""
    if given == "true":
        return f" because {reason.clause}"
    subject = rng.choice([word for word in vocabulary.SUBJECTS if word != reason.subject])
    quality = rng.choice([word for word in vocabulary.QUALITIES if word != reason.quality])
    return f" because {Reason(subject, quality).clause}"


def _opening(opening: Opening, rng: random.Random) -> str:
    phrases = {"plain": ("",), "warm": vocabulary.WARM_OPENINGS, "rude": vocabulary.RUDE_OPENINGS}
    return rng.choice(phrases[opening])


def _closing(closing: Closing, rng: random.Random) -> str:
    phrases = {
        "none": ("",),
        "warm": vocabulary.WARM_CLOSINGS,
        "rude": vocabulary.RUDE_CLOSINGS,
        "ramble": vocabulary.RAMBLES,
    }
    return rng.choice(phrases[closing])


def _draw(habit: Mapping[Choice, float], rng: random.Random) -> Choice:
    (choice,) = rng.choices(tuple(habit), weights=tuple(habit.values()))
    return choice
