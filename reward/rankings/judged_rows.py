"""One row, read: a prompt, some responses to it and votes on them. What all shapes of row have in common.

Owns the fields that the shapes share: responses with their models, raters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from reward.format_fields import read_optional, read_required
from reward.rankings.config import BattlesFormat, ScoredFormat, VotesFormat
from reward.rankings.judgements import Judgement
from reward.row_fields import (
    BadRowError,
    Ranking,
    Row,
    is_list,
    read_field,
    read_response,
    render_prompt_field,
    shortened,
)

JudgedText = tuple[str | None, str | None]
"""(text, model), each None where the row has none."""


@dataclass(frozen=True, slots=True)
class RowVote:
    """One rater's order of the responses of a row, by their places in it.

    Attributes:
        ranking: Groups of places, best first; ties share a group.
        rater: Name; None where nobody is named.
        is_choice: Whether the order of the last group is unknown instead of tied.
    """

    ranking: Ranking
    rater: str | None = None
    is_choice: bool = False

    def over(self, places: Sequence[int]) -> "RowVote":
        """The same vote with other numbers for the responses."""
        return replace(self, ranking=tuple(tuple(places[index] for index in group) for group in self.ranking))

    def judgement(self, prompt: int, raters: Mapping[str, int]) -> Judgement:
        """The vote as a judgement, with the rater's number."""
        rater = 0 if self.rater is None else raters[self.rater]
        return Judgement(self.ranking, prompt, rater, self.is_choice)


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """What a row says.

    Attributes:
        prompt: As written; None where the row has none.
        responses: The judged responses.
        votes: On them.
        scores: One for each response, where nobody in particular scored them.
        key: What makes two rows' prompts the same; None takes the prompt as written.
    """

    prompt: object
    responses: tuple[JudgedText, ...]
    votes: tuple[RowVote, ...]
    scores: tuple[float, ...] | None = None
    key: str | None = None


def read_written_prompt(row: Row, format: ScoredFormat | VotesFormat) -> object:
    """The prompt as written, text or messages.

    Raises:
        BadRowError: it is missing or neither.
    """
    prompt = read_required(row, format, "prompt")
    render_prompt_field(prompt, lambda _: "")
    return prompt


def read_responses(row: Row, format: ScoredFormat | VotesFormat) -> tuple[JudgedText, ...]:
    """The texts and models of the responses.

    Raises:
        BadRowError: there are fewer than two, one has no text, or two cannot be told apart.
    """
    written = read_required(row, format, "responses")
    if not is_list(written) or len(written) < 2:
        count = f", K = {len(written)}" if is_list(written) else ""
        raise BadRowError(
            f"field 'responses' is {shortened(written)}{count}; a list of at least 2 can be ranked: add responses"
        )
    found = tuple(_read_judged_text(item, index, format) for index, item in enumerate(cast(Sequence[Any], written)))
    for index, response in enumerate(found):
        first = found.index(response)
        if first != index:
            raise BadRowError(
                f"responses {first} and {index} are identical, so a vote cannot tell them apart; remove one, or name "
                "their models"
            )
    return found


def read_rater(row: Row, field: str | None) -> str | None:
    """The name of a rater; None where the format has none.

    Raises:
        BadRowError: the field is missing or empty.
    """
    if field is None:
        return None
    rater = read_field(row, field)
    if not isinstance(rater, str | int) or isinstance(rater, bool) or not str(rater).strip():
        raise BadRowError(f"field {field!r} is {shortened(rater)}; a rater is a name or a number: correct it")
    return str(rater)


def read_model(row: Row, format: ScoredFormat | VotesFormat | BattlesFormat, name: str = "model") -> str | None:
    """The name of a model; None where the row has none.

    Raises:
        BadRowError: it is not text, or empty.
    """
    model = read_optional(row, format, name)
    if model is not None and not (isinstance(model, str) and model.strip()):
        raise BadRowError(f"field {name!r} is {shortened(model)}; a model's name is text: correct it")
    return model


def _read_judged_text(item: Any, index: int, format: ScoredFormat | VotesFormat) -> JudgedText:
    name = f"responses[{index}]"
    if not isinstance(item, Mapping):
        return read_response(item, name), None
    fields = cast(Row, item)
    try:
        return read_response(read_required(fields, format, "text"), format.text_field), read_model(fields, format)
    except BadRowError as error:
        raise BadRowError(f"{name}: {error}") from error
