"""What was there before: whole documents, and spans of three sentences.

Owns exact comparison, by hashes of normalised text. Documents that are only alike are `near_duplicates`.
"""

import unicodedata
from hashlib import blake2b
from itertools import count

from rlhf.corpus.segments import sentences_of_line

SPAN_SENTENCES = 3


def normalised(text: str) -> str:
    """The text in one case and one Unicode form, with single spaces between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def fingerprint(text: str) -> bytes:
    """16 bytes that two texts share when they are equal but for case and white space."""
    return blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=16).digest()


class ExactDuplicates:
    """Drops a document that equals one that was kept before."""

    name = "exact_duplicates"

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._last = b""

    def apply(self, text: str) -> str:
        """The text, or "" where it was kept before."""
        self._last = fingerprint(text)
        return "" if self._last in self._seen else text

    def keep(self) -> None:
        """Remembers the last text."""
        self._seen.add(self._last)


class RepeatedSpans:
    """Removes three sentences in a row that stood so in a kept document, or earlier in the same one.

    All but the first of any three-sentence span that occurs more than once go (Raffel et al. 2020, section 2.2).
    """

    name = "c4.repeated_spans"

    def __init__(self) -> None:
        self._seen: set[bytes] = set()
        self._last: set[bytes] = set()

    def apply(self, text: str) -> str:
        """The text without the sentences of repeated spans; lines that are left empty go, too."""
        lines = text.split("\n")
        split = [sentences_of_line(line.strip()) for line in lines]
        removed = self._repeated([sentence for sentences in split for sentence in sentences])
        if not removed:
            return text
        numbers = count()
        kept: list[str] = []
        for line, sentences in zip(lines, split, strict=True):
            stays = [sentence for sentence in sentences if next(numbers) not in removed]
            if len(stays) == len(sentences):
                kept.append(line)
            elif stays:
                kept.append(" ".join(stays))
        return "\n".join(kept).strip("\n") if any(line.strip() for line in kept) else ""

    def keep(self) -> None:
        """Remembers the spans of the last text."""
        self._seen |= self._last

    def _repeated(self, sentences: list[str]) -> set[int]:
        """Indices of sentences inside a repeated span; the spans that are new are kept in mind."""
        self._last = set()
        removed: set[int] = set()
        for start in range(len(sentences) - SPAN_SENTENCES + 1):
            span = fingerprint(" ".join(sentences[start : start + SPAN_SENTENCES]))
            if span in self._seen or span in self._last:
                removed.update(range(start, start + SPAN_SENTENCES))
            else:
                self._last.add(span)
        return removed
