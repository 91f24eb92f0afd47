"""The common form of everything that people report: who put which responses to one prompt in which order.

Owns the types, and how scores become an order. Rows become judgements in `reading`; what judgements say about strengths
is `strengths`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reward.row_fields import Ranking

_ROUNDING = 1e-6
"""Strengths and scores that differ by less are equal: a fit gives two equal items slightly different last digits."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One rater's order of some items.

    Example: ranking ((4,), (2, 7)) puts item 4 above items 2 and 7, which tie. With `is_choice` it says only that 4 was
    chosen out of the three; 2 and 7 were not compared.

    Attributes:
        ranking: Groups of item indices, best first; ties share a group.
        prompt: Index of the prompt; judgements of one prompt are not independent.
        rater: Index of the rater; 0 for everybody where raters are unknown.
        is_choice: Whether the order of the last group is unknown instead of tied.
    """

    ranking: Ranking
    prompt: int
    rater: int = 0
    is_choice: bool = False

    @property
    def items(self) -> tuple[int, ...]:
        """The items in the order of the ranking."""
        return tuple(item for group in self.ranking for item in group)


@dataclass(frozen=True, slots=True)
class JudgedResponse:
    """Something that was judged.

    Attributes:
        prompt: Index of its prompt.
        text: The response; None in logs that keep outcomes only.
        model: Index of the model that wrote it; None where rows name none.
        score: Mean score, where the rows hold scores of nobody in particular; else None.
    """

    prompt: int
    text: str | None
    model: int | None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class JudgementSet:
    """What came of the rows.

    Attributes:
        prompts: Prompts as written, text or messages; None where a log keeps none.
        responses: Those of one prompt stand together, prompts in their order.
        judgements: Over indices into `responses`.
        raters: Names; empty where raters are unknown.
        models: Names; empty where rows name none.
        skipped: One line for each bad row that was left out.
    """

    prompts: list[object]
    responses: list[JudgedResponse]
    judgements: list[Judgement]
    raters: list[str]
    models: list[str]
    skipped: list[str]

    def between_models(self) -> tuple[list[Judgement], list[int]]:
        """The judgements over indices into `models`, and the index of each in `judgements`.

        Responses whose model is unknown are left out, and so is a judgement of fewer than two models. A model that
        stands several times in one judgement counts with its best response.
        """
        found = [(self._between_models(judgement), index) for index, judgement in enumerate(self.judgements)]
        kept = [(judgement, index) for judgement, index in found if len(judgement.items) > 1]
        return [judgement for judgement, _ in kept], [index for _, index in kept]

    def _between_models(self, judgement: Judgement) -> Judgement:
        seen: set[int | None] = {None}
        groups: list[tuple[int, ...]] = []
        for group in judgement.ranking:
            models = dict.fromkeys(self.responses[item].model for item in group)
            groups.append(tuple(model for model in models if model is not None and model not in seen))
            seen.update(models)
        return replace(judgement, ranking=tuple(group for group in groups if group))


def order_of(values: Sequence[float], *, tie_margin: float) -> Ranking:
    """Indices by value, highest first; those at most `tie_margin` below the best of their group tie with it."""
    groups: list[list[int]] = []
    best = 0.0
    for index in sorted(range(len(values)), key=lambda index: -values[index]):
        if not groups or best - values[index] > tie_margin + _ROUNDING:
            groups.append([])
            best = values[index]
        groups[-1].append(index)
    return tuple(tuple(sorted(group)) for group in groups)
