"""Patterns: a text with a place for what is classified, and the answer as its next token.

Owns the reading of templates and the token ids that a text gets in a pattern. Words and labels are `verbalizer`.

    "{text} It was {answer}"  and  "a dull film ."   ->   ids of "a dull film . It was"; the answer begins with " "
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from string import Formatter
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from policies.sequences import TokenIds
from policies.tokenization import decode, encode_prompt

Tokens = tuple[int, ...]
Run = str | Tokens
"""A stretch of a prompt: text that is tokenized as a whole, or tokens that stand as they are."""


class Slot(Enum):
    """A place that is filled."""

    TEXT = "text"
    TRIGGER = "trigger"
    ANSWER = "answer"


Piece = str | Tokens | Slot


@dataclass(frozen=True, slots=True)
class Pattern:
    """A template, read.

    Attributes:
        pieces: What stands before the answer, in order.
        gap: White space between that and the answer; it belongs to the answer's token.
    """

    pieces: tuple[Piece, ...]
    gap: str

    def runs(self, text: str) -> list[Run]:
        """The prompt of a text, up to the answer."""
        assert Slot.TRIGGER not in self.pieces, "triggers are filled by `with_triggers` first"
        return [text if piece is Slot.TEXT else cast(Run, piece) for piece in self.pieces]

    def solved(self, text: str, word: str) -> list[Run]:
        """The text with its answer."""
        return [*self.runs(text), self.gap + word]

    def with_triggers(self, triggers: Tokens) -> "Pattern":
        """The pattern with tokens in the place of `{trigger}`."""
        return replace(self, pieces=tuple(triggers if piece is Slot.TRIGGER else piece for piece in self.pieces))

    @property
    def anchor(self) -> str:
        """Text right before the answer, against which its token is found."""
        last = self.pieces[-1]
        return last if isinstance(last, str) else "a"

    def describe(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The template again; tokens stand there as text."""
        parts = [
            f"{{{piece.value}}}"
            if isinstance(piece, Slot)
            else piece
            if isinstance(piece, str)
            else decode(piece, tokenizer)
            for piece in self.pieces
        ]
        return "".join(parts) + self.gap + "{answer}"


def read_pattern(template: str, *, field: str, with_trigger: bool = False) -> Pattern:
    """Reads a template; `{{` and `}}` stand for braces.

    Args:
        template: Text with `{text}` once and `{answer}` once, at the end.
        field: Configuration key, for errors.
        with_trigger: Whether `{trigger}` stands between the two, once.

    Raises:
        ValueError: a slot is missing, stands there twice or is unknown, or the answer is not at the end.
    """
    pieces = _split(template, field)
    needed = [Slot.TEXT, *([Slot.TRIGGER] if with_trigger else []), Slot.ANSWER]
    for slot in Slot:
        count, allowed = pieces.count(slot), int(slot in needed)
        if count != allowed:
            raise ValueError(
                f"{field}={template!r}: the slot {{{slot.value}}} stands there {count} times; {allowed} is allowed: "
                f"write it as in {_example(needed)!r}"
            )
    if pieces[-1] is not Slot.ANSWER or [piece for piece in pieces if isinstance(piece, Slot)] != needed:
        raise ValueError(
            f"{field}={template!r}: the answer is the next token of a decoder, so the slots must come in the order of "
            f"{_example(needed)!r}, and nothing may follow {{answer}}"
        )
    return _with_gap(pieces[:-1])


def encode_runs(runs: Sequence[Run], tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """(P,) ids of a prompt: neighbouring texts are joined and tokenized as one, tokens stay as they are.

    It begins with a text; the tokenizer's special tokens stand in front.
    """
    joined: list[Run] = []
    for run in runs:
        if joined and isinstance(run, str) and isinstance(joined[-1], str):
            joined[-1] += run
        elif run:
            joined.append(run)
    first, *rest = joined
    assert isinstance(first, str), "a pattern begins with a text"
    return np.concatenate([encode_prompt(first, tokenizer), *(_ids(run, tokenizer) for run in rest)])


def _ids(run: Run, tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    ids = tokenizer(run, add_special_tokens=False, verbose=False)["input_ids"] if isinstance(run, str) else run
    return np.array(ids, dtype=np.int32)


def _split(template: str, field: str) -> list[Piece]:
    pieces: list[Piece] = []
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{field}={template!r}: {error}; write braces that are no slot twice") from error
    for literal, name, _, _ in parts:
        if literal:
            pieces.append(literal)
        if name is not None:
            if name not in {slot.value for slot in Slot}:
                raise ValueError(f"{field}={template!r}: {{{name}}} is no slot; allowed are {{text}} and {{answer}}")
            pieces.append(Slot(name))
    return pieces


def _with_gap(pieces: list[Piece]) -> Pattern:
    """White space before the answer moves into the gap; without it tokenizers would split the answer otherwise."""
    last = pieces[-1]
    if not isinstance(last, str):
        return Pattern(tuple(pieces), "")
    kept = last.rstrip()
    return Pattern((*pieces[:-1], kept) if kept else tuple(pieces[:-1]), last[len(kept) :])


def _example(slots: Sequence[Slot]) -> str:
    return "{text} It was {trigger} {answer}" if Slot.TRIGGER in slots else "{text} It was {answer}"
