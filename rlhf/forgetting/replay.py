"""Old rows as examples, and their places among the new ones."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rlhf.conversations import Example, ExampleSet, examples_from_rows
from rlhf.data import load_rows
from rlhf.example_order import shuffled
from rlhf.text_stream import encode_documents, require_texts

_OLD_STREAM = (1,)
"""Keeps the order of old examples apart from that of new ones with the same seed."""


def old_examples(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    on_bad_row: Literal["error", "skip"],
    chat_template: str | None,
    field: str = "retention.data",
    limit: str = "max_tokens",
) -> ExampleSet:
    """Old rows: those with `text` in whole, in pieces of `max_tokens`; of the others, completions.

    Args:
        source: Where the rows are.
        tokenizer: Of the model.
        max_tokens: A longer demonstration is a bad row.
        on_bad_row: See `rlhf.conversations.examples_from_rows`.
        chat_template: Likewise.
        field: What names `source`, for errors.
        limit: What `max_tokens` is, for errors.

    Raises:
        ValueError: a bad row, or none at all.
    """
    rows, named = load_rows(source, field=field), f"{field}={source}"
    texts = [row for row in rows if "text" in row]
    told = [row for row in rows if "text" not in row]
    documents, skipped = require_texts(texts, source=named, on_bad_row=on_bad_row) if texts else ([], [])
    pieces = encode_documents(documents, tokenizer, max_tokens=max_tokens)
    examples = [Example(piece, np.arange(len(piece)) > 0) for piece in pieces]
    if told:
        found = examples_from_rows(
            told,
            tokenizer,
            max_tokens=max_tokens,
            source=named,
            on_bad_row=on_bad_row,
            chat_template=chat_template,
            limit=limit,
        )
        examples, skipped = examples + found.examples, skipped + found.skipped
    return ExampleSet(examples, skipped)


def drawn(examples: Sequence[Example], count: int, *, seed: int) -> list[Example]:
    """At most `count` of them, a function of the seed."""
    return [examples[index] for index in shuffled(len(examples), min(count, len(examples)), seed=seed)]


def replay_order(
    lengths: Sequence[int], new: int, *, share: float, epochs: float, examples_per_step: int, seed: int
) -> list[int]:
    """What a run with replay trains on: `new` and old examples, so many of each in every step, a function of the seed.

    Every step has r = round(share * examples_per_step) old ones, at least 1 and at most all but one; the last, which
    may be short, has as many in proportion, rounded up. Old examples come in endless permutations of their own.

    Args:
        lengths: Tokens of the new examples, then of the old ones.
        new: How many are new.
        share: See above.
        epochs: Passes over the new ones.
        examples_per_step: New and old.
        seed: Of both orders.

    Returns:
        Indices into `lengths`; within a step they stand by length.
    """
    replayed = min(max(1, round(share * examples_per_step)), examples_per_step - 1)
    width = examples_per_step - replayed
    order = shuffled(new, math.ceil(epochs * new), seed=seed)
    steps = [order[start : start + width] for start in range(0, len(order), width)]
    old = shuffled(len(lengths) - new, len(steps) * replayed, seed=seed, stream=_OLD_STREAM)
    mixed: list[int] = []
    for number, step in enumerate(steps):
        count = math.ceil(replayed * len(step) / width)
        places = old[number * replayed : number * replayed + count]
        mixed += sorted([*step, *(new + place for place in places)], key=lambda index: lengths[index])
    return mixed
