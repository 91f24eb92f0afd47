"""Rows of votes: several responses to one prompt, and who ranked them how, or chose which.

Owns what such a row must hold; see `VotesFormat`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from reward.rankings.config import VotesFormat
from reward.rankings.judged_rows import JudgedRow, RowVote, read_rater, read_responses, read_written_prompt
from reward.row_fields import BadRowError, Row, is_list, read_groups, shortened

TIE = "tie"


def read_votes(row: Row, format: VotesFormat) -> JudgedRow:
    """One row.

    Raises:
        BadRowError: a field is missing or wrong.
    """
    responses = read_responses(row)
    votes = tuple(_read_vote(vote, len(responses), format) for vote in _votes_of(row))
    return JudgedRow(read_written_prompt(row), responses, votes)


def _votes_of(row: Row) -> Sequence[Row]:
    """The list `votes`, or the row itself as its one vote."""
    votes = row.get("votes")
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
    ranking, choice = vote.get("ranking"), vote.get("choice")
    if (ranking is None) == (choice is None):
        raise BadRowError(
            f"a vote has {'neither' if ranking is None else 'both'} of 'ranking' and 'choice'; it needs one of them: "
            "correct it"
        )
    if ranking is not None:
        return RowVote(read_groups(ranking, count), rater)
    return _read_choice(choice, count, rater)


def _read_choice(choice: Any, count: int, rater: str | None) -> RowVote:
    everything = tuple(range(count))
    if choice == TIE:
        return RowVote((everything,), rater)
    if type(choice) is not int or choice not in everything:
        raise BadRowError(
            f"field 'choice' is {shortened(choice)}; allowed are an index from 0 to {count - 1}, or {TIE!r}: correct it"
        )
    others = tuple(index for index in everything if index != choice)
    return RowVote(((choice,), others), rater, is_choice=True)
