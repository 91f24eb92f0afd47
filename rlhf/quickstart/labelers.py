"""Simulated labelers: people who see the gold components through their own weights, with noise, and rank by that.

    utility(response) = sum over components of weight x gold component

A ranking sorts utility + noise x Gumbel(0, 1). That is a draw from Plackett-Luce with log-strengths utility / noise
(Luce 1959; Plackett 1975), and Bradley-Terry for two responses. Each prompt is ranked by one labeler; two labelers
agree on about four pairs of five.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.quickstart.gold import gold_components
from rlhf.quickstart.questions import Question

TIE_MARGIN = 0.1
"""Felt utilities closer than this to the best of their group are a tie."""

NOISE = 0.5
"""Scale of the Gumbel noise, in units of gold reward."""


@dataclass(frozen=True, slots=True)
class Labeler:
    """One simulated person.

    Attributes:
        name: Name in the data.
        description: What they care about, in words.
        weights: Multiplier of each gold component that is not 1 for them.
        noise: Scale of the Gumbel noise, in units of gold reward; 0 makes the labeler deterministic.
    """

    name: str
    description: str
    weights: Mapping[str, float]
    noise: float = NOISE

    def utility(self, question: Question, response: str) -> float:
        """Noise-free utility of `response` to this labeler, in units of gold reward."""
        components = gold_components(question, response)
        return sum(self.weights.get(name, 1.0) * value for name, value in components.items())


LABELERS = (
    Labeler(
        "amber", "a teacher: truth first, manners later", {"answer": 1.4, "reason": 1.3, "warmth": 0.6, "manners": 0.6}
    ),
    Labeler(
        "bjorn",
        "an innkeeper: manners first, details later",
        {"warmth": 1.8, "manners": 1.4, "answer": 0.8, "reason": 0.7},
    ),
    Labeler(
        "chen", "a busy editor: short, and only once", {"brevity": 2.0, "repetition": 1.6, "reason": 0.7, "warmth": 0.7}
    ),
    Labeler("dalia", "a curious child: wants to know why", {"reason": 1.6, "brevity": 0.4, "sentence": 0.5}),
    Labeler(
        "emeka",
        "an easy-going reader who minds little, and less each hour",
        {"manners": 0.5, "sentence": 0.5},
        noise=0.8,
    ),
)
"""The labeling team; every prompt is ranked by one of them, chosen evenly."""


def rank(question: Question, responses: Sequence[str], labeler: Labeler, rng: random.Random) -> list[list[int]]:
    """Rank `responses` to `question`: groups of indices, best first, ties in one group.

    Equal texts are felt once, so they always tie.

    Raises:
        ValueError: If there are no responses.
    """
    if not responses:
        raise ValueError(
            f"responses is empty for the prompt of question {question.id!r}: give at least one response to rank"
        )
    felt = {
        response: labeler.utility(question, response) + labeler.noise * _gumbel(rng)
        for response in dict.fromkeys(responses)
    }
    groups: list[list[int]] = []
    best_of_group = math.inf
    for index in sorted(range(len(responses)), key=lambda index: -felt[responses[index]]):
        utility = felt[responses[index]]
        if not groups or best_of_group - utility > TIE_MARGIN:
            groups.append([])
            best_of_group = utility
        groups[-1].append(index)
    return groups


def pair_order(ranking: Sequence[Sequence[int]], first: int, second: int) -> int:
    """1 if `ranking` puts index `first` above `second`, -1 if below, 0 if tied."""
    level = {index: depth for depth, group in enumerate(ranking) for index in group}
    return (level[first] < level[second]) - (level[first] > level[second])


def _gumbel(rng: random.Random) -> float:
    """A draw of the standard Gumbel distribution: -ln E with E ~ Exponential(1)."""
    return -math.log(rng.expovariate(1.0))
