"""Rows of scored responses: several to a prompt, or one a row, scored by somebody or by nobody in particular.

Owns what such a row must hold, see `ScoredFormat`, and how the scores of one prompt become an order.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from reward.rankings.config import ScoredFormat
from reward.rankings.judged_rows import (
    JudgedRow,
    JudgedText,
    RowVote,
    read_model,
    read_rater,
    read_responses,
    read_written_prompt,
)
from reward.rankings.judgements import order_of
from reward.row_fields import BadRowError, Row, RowReader, is_list, read_field, read_response, shortened


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """What a row says.

    Attributes:
        prompt: As written.
        responses: The scored responses; one or more.
        scores: Of them, finite.
        rater: Who scored; None where nobody is named.
        place: Data and row.
    """

    prompt: object
    responses: tuple[JudgedText, ...]
    scores: tuple[float, ...]
    rater: str | None
    place: str


def read_scores(row: Row, place: str, format: ScoredFormat) -> ScoredRow:
    """One row.

    Raises:
        BadRowError: a field is missing or wrong, or a score is not finite.
    """
    prompt, rater = read_written_prompt(row), read_rater(row, format.rater_field)
    if row.get("responses") is None:
        text = read_response(read_field(row, "response"), "response")
        score = _read_score(read_field(row, format.score_field), format.score_field)
        return ScoredRow(prompt, ((text, read_model(row, "model")),), (score,), rater, place)
    return ScoredRow(prompt, read_responses(row), _read_list(row, format), rater, place)


def compare_scores(rows: Sequence[ScoredRow], reader: RowReader, *, tie_margin: float) -> list[JudgedRow]:
    """Puts the rows of each prompt together: one order of its responses, or one for each rater.

    Args:
        rows: In their order.
        reader: Refuses, or notes, a prompt whose scores rank nothing.
        tie_margin: Scores at most this far below the best of their group tie with it.
    """
    prompts: dict[str, list[ScoredRow]] = defaultdict(list)
    for row in rows:
        prompts[json.dumps(row.prompt, sort_keys=True, ensure_ascii=False)].append(row)
    judged: list[JudgedRow] = []
    for group in prompts.values():
        try:
            judged.append(_compare(group, tie_margin))
        except BadRowError as error:
            reader.refuse(group[0].place, error)
    return judged


def _compare(rows: Sequence[ScoredRow], tie_margin: float) -> JudgedRow:
    responses = tuple(dict.fromkeys(response for row in rows for response in row.responses))
    if len(responses) < 2:
        raise BadRowError("the prompt has one scored response, K = 1; at least 2 can be ranked: add responses")
    given: dict[str | None, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for response, score in zip(row.responses, row.scores, strict=True):
            given[row.rater][responses.index(response)].append(score)
    votes = [_vote(rater, scores, tie_margin) for rater, scores in given.items()]
    if not any(len(vote.ranking) > 1 for vote in votes):
        raise BadRowError("the scores tie all responses of the prompt, which says nothing; at least 2 must differ")
    scores = None
    if None in given:
        scores = tuple(math.fsum(given[None][index]) / len(given[None][index]) for index in range(len(responses)))
    return JudgedRow(
        rows[0].prompt, responses, tuple(vote for vote in votes if sum(map(len, vote.ranking)) > 1), scores
    )


def _vote(rater: str | None, scores: Mapping[int, Sequence[float]], tie_margin: float) -> RowVote:
    """A rater's order of those responses that the rater scored."""
    places = list(scores)
    means = [math.fsum(scores[place]) / len(scores[place]) for place in places]
    return RowVote(order_of(means, tie_margin=tie_margin), rater).over(places)


def _read_list(row: Row, format: ScoredFormat) -> tuple[float, ...]:
    """The scores inside `responses`, or the list `scores` beside it."""
    written = cast(Sequence[Any], row["responses"])
    if all(isinstance(item, Mapping) for item in written):
        return tuple(
            _read_score(read_field(item, format.score_field), f"responses[{index}].{format.score_field}")
            for index, item in enumerate(written)
        )
    scores = read_field(row, "scores")
    if not is_list(scores) or len(scores) != len(written):
        raise BadRowError(
            f"field 'scores' is {shortened(scores)}; a list of {len(written)} numbers is needed, one a response: "
            "correct it"
        )
    return tuple(_read_score(score, f"scores[{index}]") for index, score in enumerate(scores))


def _read_score(score: Any, name: str) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise BadRowError(f"field {name!r} is {shortened(score)}; a score is a finite number: correct or remove it")
    return float(score)
