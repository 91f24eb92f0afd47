"""Rows -> judgements: the rows of one prompt are put together, raters, models and responses get their numbers.

Owns that. What a row of each shape must hold is in `scores`, `votes` and `battles`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reward.rankings.battles import read_battle
from reward.rankings.config import BattlesFormat, RankingsInput, ScoredFormat
from reward.rankings.judged_rows import JudgedRow, RowVote
from reward.rankings.judgements import JudgedResponse, Judgement, JudgementSet
from reward.rankings.scores import compare_scores, read_scores
from reward.rankings.votes import read_votes
from reward.row_fields import OnBadRow, Row, RowReader


def judgements_from_rows(
    rows: Iterable[Row], format: RankingsInput, *, source: str, on_bad_row: OnBadRow = "error"
) -> JudgementSet:
    """Reads rows of one shape.

    Args:
        rows: Rows of one data set.
        format: What a row holds.
        source: Name of the data in errors.
        on_bad_row: "error" stops at the first bad row; "skip" leaves bad rows out and lists them.

    Raises:
        ValueError: a bad row, or no judgement at all.
    """
    reader = RowReader(source, on_bad_row)
    if isinstance(format, ScoredFormat):
        scored = reader.read(rows, lambda row, place: read_scores(row, place, format))
        judged = compare_scores(scored, reader, tie_margin=format.tie_margin)
    elif isinstance(format, BattlesFormat):
        judged = reader.read(rows, lambda row, place: read_battle(row, place, format))
    else:
        judged = reader.read(rows, lambda row, _: read_votes(row, format))
    reader.require_any(judged)
    return _put_together(judged, reader.skipped)


@dataclass
class _Prompt:
    """One prompt as it grows from row to row; indices are within the prompt."""

    prompt: object
    index: dict[tuple[str | None, str | None], int] = field(default_factory=dict)
    scores: list[float | None] = field(default_factory=list)
    votes: list[RowVote] = field(default_factory=list)

    def add(self, row: JudgedRow) -> None:
        for place, response in enumerate(row.responses):
            if response not in self.index:
                self.index[response] = len(self.index)
                self.scores.append(row.scores[place] if row.scores else None)
        places = [self.index[response] for response in row.responses]
        self.votes += [vote.over(places) for vote in row.votes]


def _put_together(rows: Sequence[JudgedRow], skipped: list[str]) -> JudgementSet:
    prompts: dict[str, _Prompt] = {}
    for row in rows:
        key = row.key or json.dumps(row.prompt, sort_keys=True, ensure_ascii=False)
        prompts.setdefault(key, _Prompt(row.prompt)).add(row)
    models = _numbered(model for row in rows for _, model in row.responses)
    raters = _numbered(vote.rater for row in rows for vote in row.votes)
    responses: list[JudgedResponse] = []
    judgements: list[Judgement] = []
    for number, prompt in enumerate(prompts.values()):
        start = len(responses)
        places = range(start, start + len(prompt.index))
        responses += [
            JudgedResponse(number, text, None if model is None else models[model], score)
            for (text, model), score in zip(prompt.index, prompt.scores, strict=True)
        ]
        judgements += [vote.over(places).judgement(number, raters) for vote in prompt.votes]
    written = [prompt.prompt for prompt in prompts.values()]
    return JudgementSet(written, responses, judgements, list(raters), list(models), skipped)


def _numbered(names: Iterable[str | None]) -> dict[str, int]:
    found = dict.fromkeys(name for name in names if name is not None)
    return {name: number for number, name in enumerate(found)}
