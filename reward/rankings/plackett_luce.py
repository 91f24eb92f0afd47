"""Plackett-Luce strengths from whole rankings, with ties after Efron (1977).

A ranking is a series of choices: the best of all, then the best of what is left (Luce 1959; Plackett 1975),

    P(ranking) = product over places k of  exp(s_k) / sum over items left of exp(s_j).

Tied items are taken to have an order that is unknown, all orders being equally likely. Of m tied items the l-th choice
(l = 0 .. m-1) divides by the items left minus l/m of the tied ones: Efron's approximation of the mean over the orders,
in the Cox model, whose partial likelihood is the same formula. A tie of the last items then says exactly nothing. Owns
the stages; the fit is `strengths`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from reward.rankings.conditional_logit import ChoiceModel
from reward.rankings.judgements import Judgement
from reward.rankings.strengths import StrengthModel


@dataclass(frozen=True, slots=True)
class _Stage:
    """One choice of a ranking.

    Attributes:
        judgement: Index of the judgement.
        tied: The m items that share the place that is filled; one where nothing ties.
        below: Items that were left.
        offset: Logarithm of the tied items' coefficient, 1 - l/m.
    """

    judgement: int
    tied: tuple[int, ...]
    below: tuple[int, ...]
    offset: float

    @property
    def items(self) -> tuple[int, ...]:
        return self.tied + self.below


def plackett_luce(judgements: Sequence[Judgement], item_count: int) -> StrengthModel:
    """The model of the judgements' choices. Judgements that tie everything contribute nothing.

    Raises:
        ValueError: every judgement ties all its items.
    """
    stages = [stage for index, judgement in enumerate(judgements) for stage in _stages(index, judgement)]
    if not stages:
        raise ValueError(
            "data.train: every judgement ties all its items, which ranks nothing; add rankings with a preference"
        )
    items = np.array([item for stage in stages for item in stage.items])
    tied = np.array([place < len(stage.tied) for stage in stages for place in range(len(stage.items))])
    sizes = np.array([len(stage.items) for stage in stages])
    # Any of the m tied items may be the one that is chosen: each counts 1/m.
    counts = np.where(tied, np.repeat([1.0 / len(stage.tied) for stage in stages], sizes), 0.0)
    offsets = np.where(tied, np.repeat([stage.offset for stage in stages], sizes), 0.0)
    starts = np.cumsum(sizes) - sizes
    alternatives = np.arange(len(items))
    features = sparse.csr_array((np.ones(len(items)), (alternatives, items)), shape=(len(items), item_count))
    judgement = np.repeat([stage.judgement for stage in stages], sizes)
    contributions = sparse.csr_array((counts, (judgement, alternatives)), shape=(len(judgements), len(items)))
    edges = [
        (start + place, item, other)
        for start, stage in zip(starts.tolist(), stages, strict=True)
        for place, item in enumerate(stage.tied)
        for other in stage.items
        if other != item
    ]
    return StrengthModel(ChoiceModel(features, offsets, starts), contributions, item_count, np.array(edges))


def _stages(index: int, judgement: Judgement) -> Iterator[_Stage]:
    """Every choice of a ranking; nothing for its last group."""
    for place, group in enumerate(judgement.ranking[:-1]):
        below = tuple(item for later in judgement.ranking[place + 1 :] for item in later)
        for earlier in range(len(group)):
            yield _Stage(index, group, below, math.log1p(-earlier / len(group)))
