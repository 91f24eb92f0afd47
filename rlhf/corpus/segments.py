"""Lines, sentences and words of a text, in scripts with spaces between words and in scripts without.

Owns segmentation only. It uses no model of a language: a sentence ends at a final mark before white space, or at a full
stop of an East Asian script, or with its line.
"""

import re

FINAL_MARKS = ".!?\N{HORIZONTAL ELLIPSIS}。！？｡।؟۔።"  # noqa: RUF001 - marks of other scripts
"""What ends a sentence: Latin, East Asian, Devanagari, Arabic, Urdu and Ethiopic marks."""
CLOSING_QUOTES = "\"'”’»」』“)"  # noqa: RUF001 - quotation marks of other languages
"""What may follow a final mark, or end a quotation (German closes with the mark that opens in English)."""

_UNSPACED = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Myanmar, Khmer
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han
)
_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_UNSPACED_CHARACTER = re.compile(rf"[{_UNSPACED}]")
_BREAK = re.compile(rf"(?<=[{FINAL_MARKS}])(?=[{CLOSING_QUOTES}]*\s)[{CLOSING_QUOTES}]*|(?<=[。！？｡])")  # noqa: RUF001
_LETTER = re.compile(r"[^\W\d_]")


def lines_of(text: str) -> list[str]:
    """Lines without white space around them; empty ones are left out."""
    return [line for raw in text.split("\n") if (line := raw.strip())]


def sentences_of(text: str) -> list[str]:
    """Sentences in order, without white space around them; only parts with a letter count."""
    return [sentence for line in lines_of(text) for sentence in sentences_of_line(line)]


def sentences_of_line(line: str) -> list[str]:
    """The sentences of one line."""
    ends = [match.end() for match in _BREAK.finditer(line)]
    starts = [0, *ends]
    parts = (line[start:end].strip() for start, end in zip(starts, [*ends, len(line)], strict=True))
    return [part for part in parts if has_letter(part)]


def words_of(text: str) -> list[str]:
    """What stands between spaces; of scripts that write none, every character."""
    return _WORD.findall(text)


def is_spaced(word: str) -> bool:
    """Whether a word of `words_of` belongs to a script with spaces."""
    return _UNSPACED_CHARACTER.match(word) is None


def has_letter(text: str) -> bool:
    """Whether a text has a letter of any script."""
    return _LETTER.search(text) is not None
