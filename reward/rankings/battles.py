"""Rows of a win/lose/tie log: two models, and which of them won.

Owns what such a row must hold; see `BattlesFormat`.
"""

from reward.rankings.config import BattlesFormat
from reward.rankings.judged_rows import JudgedRow, RowVote, read_model, read_rater
from reward.row_fields import BadRowError, Ranking, Row, read_field, read_prompt, read_response, shortened

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
    models = _read_models(row)
    winner = read_field(row, "winner")
    if not isinstance(winner, str) or winner not in _OUTCOMES:
        allowed = ", ".join(map(repr, _OUTCOMES))
        raise BadRowError(f"field 'winner' is {shortened(winner)}; allowed are {allowed}: correct it")
    vote = RowVote(_OUTCOMES[winner], read_rater(row, format.rater_field))
    texts = _read_texts(row)
    written = row.get(format.prompt_field)
    prompt = None if written == "" else written  # how a CSV file says that there is none
    if texts[0] is not None:
        read_prompt({"prompt": prompt}, lambda _: "")
    # A log without prompts: no two of its games are about the same thing.
    key = place if prompt is None else None
    return JudgedRow(prompt, ((texts[0], models[0]), (texts[1], models[1])), (vote,), key=key)


def _read_models(row: Row) -> tuple[str, str]:
    models = [read_model({name: read_field(row, name)}, name) for name in ("model_a", "model_b")]
    first, second = (model or "" for model in models)
    if first == second:
        raise BadRowError(f"fields 'model_a' and 'model_b' are both {first!r}; a model cannot meet itself: correct it")
    return first, second


def _read_texts(row: Row) -> tuple[str | None, str | None]:
    names = ("response_a", "response_b")
    missing = [name for name in names if row.get(name) is None]
    if len(missing) == len(names):
        return None, None
    if missing:
        raise BadRowError(f"field {missing[0]!r} is missing but the other response is there; give both or neither")
    return read_response(row["response_a"], "response_a"), read_response(row["response_b"], "response_b")
