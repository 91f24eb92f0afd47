"""Rows of scored responses: several to a prompt, or one a row, scored by somebody or by nobody in particular.

Owns what such a row must hold, see `ScoredFormat`, and how the scores of one prompt become an order.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reward.format_fields import read_optional, read_required
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
from reward.row_fields import BadRowError, Row, RowReader, is_list, read_response, shortened


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
    prompt, rater = read_written_prompt(row, format), read_rater(row, format.rater_field)
    written = read_optional(row, format, "responses")
    if written is not None:
        return ScoredRow(prompt, read_responses(row, format), _read_list(row, written, format), rater, place)
    if read_optional(row, format, "response") is None:
        raise BadRowError(
            f"fields {format.responses_field!r} and {format.response_field!r} are missing (the row has "
            f"{', '.join(map(repr, row))}): add one, or set data.format.responses_field (several responses a row) or "
            "response_field (one a row) to the column that holds it"
        )
    text = read_response(read_required(row, format, "response"), format.response_field)
    score = _read_score(read_required(row, format, "score"), format.score_field, format)
    return ScoredRow(prompt, ((text, read_model(row, format)),), (score,), rater, place)


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


def _read_list(row: Row, written: Sequence[Any], format: ScoredFormat) -> tuple[float, ...]:
    """The scores inside `responses`, or the list `scores` beside it."""
    if all(isinstance(item, Mapping) for item in written):
        return tuple(
            _read_score(read_required(item, format, "score"), f"responses[{index}].{format.score_field}", format)
            for index, item in enumerate(written)
        )
    scores = read_required(row, format, "scores")
    if not is_list(scores) or len(scores) != len(written):
        raise BadRowError(
            f"field 'scores' is {shortened(scores)}; a list of {len(written)} numbers is needed, one a response: "
            "correct it"
        )
    return tuple(_read_score(score, f"scores[{index}]", format) for index, score in enumerate(scores))


def _read_score(written: Any, name: str, format: ScoredFormat) -> float:
    """A score, the higher the better. CSV files with empty cells, and some judges, write numbers as text."""
    try:
        score = math.nan if isinstance(written, bool) else float(written)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise BadRowError(f"field {name!r} is {shortened(written)}; a score is a finite number: correct or remove it")
    return score if format.best_score == "highest" else -score
