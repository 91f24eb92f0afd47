"""Rows of votes: several responses to one prompt, and who ranked them how, or chose which.

Owns what such a row must hold; see `VotesFormat`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from reward.format_fields import read_optional
from reward.rankings.config import VotesFormat
from reward.rankings.judged_rows import JudgedRow, RowVote, read_rater, read_responses, read_written_prompt
from reward.row_fields import BadRowError, Row, is_list, read_groups, shortened

TIE = "tie"


def read_votes(row: Row, format: VotesFormat) -> JudgedRow:
    """One row.

    Raises:
        BadRowError: a field is missing or wrong.
    """
    responses = read_responses(row, format)
    votes = tuple(_read_vote(vote, len(responses), format) for vote in _votes_of(row, format))
    return JudgedRow(read_written_prompt(row, format), responses, votes)


def _votes_of(row: Row, format: VotesFormat) -> Sequence[Row]:
    """The list `votes`, or the row itself as its one vote."""
    votes = read_optional(row, format, "votes")
    if votes is None:
        return [row]
    if not is_list(votes) or not votes or not all(isinstance(vote, Mapping) for vote in votes):
        raise BadRowError(
            f"field 'votes' is {shortened(votes)}; a list of at least one object with `ranking` or `choice` is needed: "
            "correct it"
        )
    return cast(Sequence[Row], votes)


def _read_vote(vote: Row, count: int, format: VotesFormat) -> RowVote:
    rater = read_rater(vote, format.rater_field)
    ranking, choice = read_optional(vote, format, "ranking"), read_optional(vote, format, "choice")
    if (ranking is None) == (choice is None):
        raise BadRowError(
            f"a vote has {'neither' if ranking is None else 'both'} of {format.ranking_field!r} and "
            f"{format.choice_field!r} (it has {', '.join(map(repr, vote))}); it needs one of them: correct it, or set "
            "data.format.choice_field"
        )
    if ranking is not None:
        return RowVote(read_groups(ranking, count), rater)
    return _read_choice(choice, count, rater, format)


def _read_choice(written: Any, count: int, rater: str | None, format: VotesFormat) -> RowVote:
    everything = tuple(range(count))
    choice = {str(value): meaning for value, meaning in format.choices.items()}.get(str(written), written)
    if choice == TIE:
        return RowVote((everything,), rater)
    if type(choice) is not int or choice not in everything:
        raise BadRowError(
            f"field {format.choice_field!r} is {shortened(written)}; allowed are an index from 0 to {count - 1}, or "
            f"{TIE!r}: correct it, or say what it stands for in data.format.choices"
        )
    others = tuple(index for index in everything if index != choice)
    return RowVote(((choice,), others), rater, is_choice=True)
