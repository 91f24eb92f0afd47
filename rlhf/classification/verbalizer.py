"""Words that stand for labels, as single tokens in the answer slot of a pattern.

Owns the step from word to token id, the error that names words which have none, and which words a vocabulary offers.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from policies.tokenization import decode
from rlhf.classification.patterns import Pattern

_SHOWN_CANDIDATES = 3


@dataclass(frozen=True, slots=True)
class Answers:
    """The words of each label in one pattern.

    Attributes:
        words: L lists of words.
        token_ids: L lists of ids, one for each word.
    """

    words: tuple[tuple[str, ...], ...]
    token_ids: tuple[tuple[int, ...], ...]


def read_answers(
    words: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    pattern: Pattern,
    tokenizer: PreTrainedTokenizerBase,
    *,
    may_share: bool = False,
) -> Answers:
    """The token of every word, as it follows the pattern.

    Args:
        words: Words of each label.
        labels: In the order of the result.
        pattern: Where the words stand.
        tokenizer: Of the model.
        may_share: Whether two labels may have a word in common.

    Raises:
        ValueError: a word is several tokens (with candidates that are one), or stands for two labels.
    """
    ids = tuple(tuple(_token_of(word, label, pattern, tokenizer) for word in words[label]) for label in labels)
    owners: dict[int, str] = {}
    for label, own in zip(labels, ids, strict=True):
        for word, token in zip(words[label], own, strict=True):
            if not may_share and owners.setdefault(token, label) != label:
                raise ValueError(
                    f"words: {word!r} stands for the labels {owners[token]!r} and {label!r}; give each its own words"
                )
    return Answers(tuple(tuple(words[label]) for label in labels), ids)


def answer_ids(word: str, pattern: Pattern, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that a word adds behind the pattern, with the white space before it."""
    before = _encode(pattern.anchor, tokenizer)
    joined = _encode(pattern.anchor + pattern.gap + word, tokenizer)
    # Where the word fuses with the text before it, it is no token of its own there.
    return joined[len(before) :] if joined[: len(before)] == before else joined


def answer_words(pattern: Pattern, tokenizer: PreTrainedTokenizerBase, *, shortest: int) -> dict[int, str]:
    """Every token of the vocabulary that is one word in the answer slot: id -> word of letters."""
    found: dict[int, str] = {}
    for token in range(len(tokenizer)):
        word = decode([token], tokenizer).strip()
        if len(word) >= shortest and word.isalpha() and answer_ids(word, pattern, tokenizer) == [token]:
            found[token] = word
    return found


def _token_of(word: str, label: str, pattern: Pattern, tokenizer: PreTrainedTokenizerBase) -> int:
    ids = answer_ids(word, pattern, tokenizer)
    if word.strip() and len(ids) == 1:
        return ids[0]
    pieces = [decode([token], tokenizer) for token in ids]
    known = answer_words(pattern, tokenizer, shortest=1).values()
    close = difflib.get_close_matches(word, known, n=_SHOWN_CANDIDATES, cutoff=0.3) or sorted(known)[:_SHOWN_CANDIDATES]
    raise ValueError(
        f"words: {word!r} of label {label!r} is {len(ids)} tokens {pieces} behind {pattern.anchor!r}; a word must be a "
        f"single token, as {', '.join(map(repr, close))} are"
    )


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return cast(list[int], tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
