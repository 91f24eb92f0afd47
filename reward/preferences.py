"""Data rows -> comparisons: which responses to one prompt are better than which.

Owns what a row of each format must hold, and how labelled texts become comparisons. It reads no files; fields one by
one are `reward.row_fields`, token ids are `reward.preference_batch`.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from reward.config import LabelledTextFormat, PairsFormat, PreferenceFormat, RankingsFormat
from reward.dialogues import TurnMarks, read_transcript, split_dialogues
from reward.encoding import prompt_renderer
from reward.format_fields import read_optional, read_required
from reward.label_strength import read_margin, read_strengths, read_weight, read_win_probability
from reward.row_fields import (
    BadRowError,
    OnBadRow,
    Ranking,
    RenderPrompt,
    Row,
    RowReader,
    is_list,
    is_present,
    read_groups,
    read_response,
    render_prompt_field,
    shortened,
    value_at,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Comparison:
    """K responses to one prompt, in the order that somebody ranked them.

    Example: responses ("a", "b", "c") with ranking ((2,), (0, 1)) says that c is better than a and than b, which tie.

    Attributes:
        prompt: Rendered prompt; empty where texts are compared without one.
        responses: K texts, K >= 2.
        ranking: Groups of indices into `responses`, best first; ties share a group. At least two groups.
        source: Data and row, for messages.
        origin: Value of the row's `source` column, for accuracy by source; None without one.
        weight: Say of this comparison beside the others.
        strengths: K numbers, how good each response is by the labels (log-odds, points, ...); None where only the order
            is known. The difference of two is the margin of their pair.
        win_probability: Probability that the better response of a pair wins, above 0.5; 1 is a certain label.
    """

    prompt: str
    responses: tuple[str, ...]
    ranking: Ranking
    source: str
    origin: str | None = None
    weight: float = 1.0
    strengths: tuple[float, ...] | None = None
    win_probability: float = 1.0

    def pairs(self) -> list[tuple[int, int]]:
        """(winner, loser) of every pair that is not a tie."""
        return [
            (winner, loser) for better, worse in combinations(self.ranking, 2) for winner in better for loser in worse
        ]

    def ties(self) -> list[tuple[int, int]]:
        """Every pair that is a tie, in no order of merit."""
        return [pair for group in self.ranking for pair in combinations(group, 2)]


@dataclass(frozen=True, slots=True)
class ComparisonSet:
    """What came of the rows.

    Attributes:
        comparisons: In the order of the rows.
        skipped: One line for each bad row that was left out.
    """

    comparisons: list[Comparison]
    skipped: list[str]


def comparisons_from_rows(
    rows: Iterable[Row],
    format: PreferenceFormat,
    *,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    on_bad_row: OnBadRow = "error",
    seed: int = 0,
    chat_template: str | None = None,
) -> ComparisonSet:
    """Reads rows of one format.

    Args:
        rows: Rows of one data set.
        format: What a row holds.
        tokenizer: Renders prompts that are messages.
        source: Name of the data in errors.
        on_bad_row: "error" stops at the first bad row; "skip" leaves bad rows out and lists them.
        seed: Decides which labelled texts meet.
        chat_template: Jinja template for messages; None takes the tokenizer's.

    Raises:
        ValueError: a bad row, or no comparison at all.
    """
    reader, render = RowReader(source, on_bad_row), prompt_renderer(tokenizer, chat_template)
    if isinstance(format, LabelledTextFormat):
        labelled = reader.read(rows, lambda row, _: read_labelled_text(row, format))
        comparisons = compare_labelled_texts(labelled, group_size=format.pairs_per_text, source=source, seed=seed)
    elif isinstance(format, PairsFormat):
        comparisons = reader.read(rows, lambda row, place: _read_pair(row, place, format, render))
        if format.turns is None:
            _hint_at_transcripts(comparisons[0])
    else:
        comparisons = reader.read(rows, lambda row, place: _read_ranking(row, place, format, render))
    return ComparisonSet(comparisons, reader.skipped)


def read_labelled_text(row: Row, format: LabelledTextFormat) -> tuple[str, bool]:
    """(text, is preferred) of a row with a text and a label.

    Raises:
        BadRowError: a field is missing, the text is empty or the label is none of the format's.
    """
    text = read_response(read_required(row, format, "text"), format.text_field)
    label = read_required(row, format, "label")
    name = str(int(label) if isinstance(label, bool) else label)
    chosen, rejected = (tuple(map(str, labels)) for labels in (format.chosen_labels, format.rejected_labels))
    if name not in (*chosen, *rejected):
        raise BadRowError(
            f"field {format.label_field!r} is {shortened(label)}; {' or '.join((*rejected, *chosen))} is allowed: "
            "correct it, or name it in data.format.chosen_labels or rejected_labels"
        )
    return text, name in chosen


def compare_labelled_texts(
    labelled: Sequence[tuple[str, bool]], *, group_size: int, source: str, seed: int
) -> list[Comparison]:
    """Shuffles the texts and lets `group_size` preferred ones meet as many others, so that every text is used.

    Where one label is rarer, its texts are used again. The last comparison may be smaller.

    Raises:
        ValueError: if one of the labels is missing.
    """
    generator = np.random.default_rng(seed)
    sides = [[text for text, is_preferred in labelled if is_preferred is side] for side in (True, False)]
    for texts, label in zip(sides, (1, 0), strict=True):
        if not texts:
            raise ValueError(f"{source}: no text of label {label}; comparisons need both: check the file and its slice")
    orders = [generator.permutation(len(texts)) for texts in sides]
    longest = max(len(texts) for texts in sides)
    comparisons: list[Comparison] = []
    for number in range(math.ceil(longest / group_size)):
        places = np.arange(number * group_size, min((number + 1) * group_size, longest))
        # A rare label may come round within one group: each of its texts stands there once.
        winners, losers = (
            [texts[index] for index in dict.fromkeys(order[places % len(texts)].tolist())]
            for texts, order in zip(sides, orders, strict=True)
        )
        ranking = (tuple(range(len(winners))), tuple(range(len(winners), len(winners) + len(losers))))
        comparisons.append(Comparison("", (*winners, *losers), ranking, f"{source}, comparison {number}"))
    return comparisons


def _read_pair(row: Row, place: str, format: PairsFormat, render: RenderPrompt) -> Comparison:
    names = (format.chosen_field, format.rejected_field)
    written = [read_required(row, format, name) for name in ("chosen", "rejected")]
    if written[0] == written[1]:
        raise BadRowError(
            f"fields {names[0]!r} and {names[1]!r} are identical; they must differ: correct or remove the row"
        )
    if format.turns is not None:
        written = [read_transcript(text, name, format.turns) for name, text in zip(names, written, strict=True)]
    prompt, written = split_dialogues(read_optional(row, format, "prompt"), dict(zip(names, written, strict=True)))
    chosen, rejected = (read_response(answer, name) for name, answer in zip(names, written, strict=True))
    if chosen == rejected:
        raise BadRowError(
            f"fields {names[0]!r} and {names[1]!r} are identical; they must differ: correct or remove the row"
        )
    return Comparison(
        "" if prompt is None else render_prompt_field(prompt, render),
        (chosen, rejected),
        ((0,), (1,)),
        place,
        origin=_read_origin(row, format),
        weight=read_weight(row),
        strengths=read_margin(read_optional(row, format, "margin")),
        win_probability=read_win_probability(row),
    )


def _hint_at_transcripts(first: Comparison) -> None:
    marks = TurnMarks()
    if not first.prompt and all(text.startswith(marks.user) for text in first.responses):
        logger.warning(
            "%s: both texts begin with %r and are read as they are, without a prompt; if the rows hold transcripts of "
            "dialogues, set data.format.turns={}",
            first.source,
            marks.user,
        )


def _read_ranking(row: Row, place: str, format: RankingsFormat, render: RenderPrompt) -> Comparison:
    written = read_required(row, format, "responses")
    if not is_list(written) or len(written) < 2:
        raise BadRowError(f"field 'responses' is {shortened(written)}; a list of at least 2 is needed: add responses")
    texts = tuple(
        read_response(_text_of(item, format), f"responses[{index}]")
        for index, item in enumerate(cast(Sequence[Any], written))
    )
    ranking = read_groups(read_required(row, format, "ranking"), len(texts))
    if len(ranking) < 2:
        raise BadRowError("field 'ranking' ties all responses, which says nothing; at least 2 groups are needed")
    comparison = Comparison(
        render_prompt_field(read_required(row, format, "prompt"), render),
        texts,
        ranking,
        place,
        origin=_read_origin(row, format),
        weight=read_weight(row),
        strengths=read_strengths(row, written),
    )
    for winner, loser in comparison.pairs():
        if texts[winner] == texts[loser]:
            raise BadRowError(f"responses {winner} and {loser} are identical but ranked apart; tie them, or remove one")
    return comparison


def _read_origin(row: Row, format: PairsFormat | RankingsFormat) -> str | None:
    """Where a row says that it came from: the text or number of its optional column `source`."""
    source = read_optional(row, format, "source")
    return str(source) if isinstance(source, str | int) and str(source).strip() else None


def _text_of(item: Any, format: RankingsFormat) -> Any:
    """What an object with text says; texts and messages as they are."""
    is_object = isinstance(item, Mapping) and is_present(item, format.text_field)
    return value_at(item, format.text_field) if is_object else item
