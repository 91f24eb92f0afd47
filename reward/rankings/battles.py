"""Rows of a win/lose/tie log: two models, and which of them won.

Owns what such a row must hold; see `BattlesFormat`.
"""

from reward.dialogues import split_dialogues
from reward.format_fields import read_optional, read_required
from reward.rankings.config import BattlesFormat
from reward.rankings.judged_rows import JudgedRow, RowVote, read_model, read_rater
from reward.row_fields import BadRowError, Ranking, Row, read_response, render_prompt_field, shortened

_OUTCOMES: dict[str, Ranking] = {
    "model_a": ((0,), (1,)),
    "model_b": ((1,), (0,)),
    "a": ((0,), (1,)),
    "b": ((1,), (0,)),
    "tie": ((0, 1),),
    "tie (bothbad)": ((0, 1),),
    "both_bad": ((0, 1),),
}


def read_battle(row: Row, place: str, format: BattlesFormat) -> JudgedRow:
    """One row.

    Raises:
        BadRowError: a field is missing or wrong, or a model meets itself.
    """
    models = _read_models(row, format)
    vote = RowVote(_read_outcome(row, format), read_rater(row, format.rater_field))
    written = read_optional(row, format, "prompt")
    prompt = None if written == "" else written  # how a CSV file says that there is none
    prompt, texts = _read_texts(row, prompt, format)
    # A log without prompts: no two of its games are about the same thing.
    key = place if prompt is None else None
    return JudgedRow(prompt, ((texts[0], models[0]), (texts[1], models[1])), (vote,), key=key)


def _read_models(row: Row, format: BattlesFormat) -> tuple[str, str]:
    names = ("model_a", "model_b")
    for name in names:
        read_required(row, format, name)
    first, second = (read_model(row, format, name) or "" for name in names)
    if first == second:
        raise BadRowError(f"fields 'model_a' and 'model_b' are both {first!r}; a model cannot meet itself: correct it")
    return first, second


def _read_outcome(row: Row, format: BattlesFormat) -> Ranking:
    winner = read_required(row, format, "winner")
    outcomes = _OUTCOMES | {str(value): _OUTCOMES[meaning] for value, meaning in format.outcomes.items()}
    if str(winner) not in outcomes:
        raise BadRowError(
            f"field {format.winner_field!r} is {shortened(winner)}; allowed are {', '.join(map(repr, outcomes))}: "
            "correct it, or say what it stands for in data.format.outcomes"
        )
    return outcomes[str(winner)]


def _read_texts(row: Row, prompt: object, format: BattlesFormat) -> tuple[object, tuple[str | None, str | None]]:
    """(prompt, the two responses), both responses None in a log without texts."""
    names = (format.response_a_field, format.response_b_field)
    written = [read_optional(row, format, name) for name in ("response_a", "response_b")]
    if all(response is None for response in written):
        return prompt, (None, None)
    for name, response in zip(names, written, strict=True):
        if response is None:
            raise BadRowError(f"field {name!r} is missing but the other response is there; give both or neither")
    prompt, answers = split_dialogues(prompt, dict(zip(names, written, strict=True)))
    if prompt is None:
        read_required(row, format, "prompt")
    render_prompt_field(prompt, lambda _: "")
    first, second = (read_response(answer, name) for name, answer in zip(names, answers, strict=True))
    return prompt, (first, second)
