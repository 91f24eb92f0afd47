"""Bounds on how much of a document repeats in it, for any language (Rae et al. 2021, table A1 and section A.1.1).

Shares by characters count the characters of words and lines, without white space around them. An n-gram counts once it
occurs twice; characters in overlapping n-grams count once.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from rlhf.corpus.config import RepetitionRules
from rlhf.corpus.rule import TextRule, document_rule
from rlhf.corpus.segments import lines_of, words_of

Measure = Callable[[str], float]


def repetition_rules(config: RepetitionRules) -> list[TextRule]:
    """The rules that are on, in the order of the configuration."""
    bounds: list[tuple[str, Measure, float | None]] = [
        ("duplicate_lines", lambda text: repeated_share(lines_of(text)), config.duplicate_lines),
        (
            "duplicate_line_characters",
            lambda text: repeated_share(lines_of(text), by_characters=True),
            config.duplicate_line_characters,
        ),
        ("duplicate_paragraphs", lambda text: repeated_share(_paragraphs(text)), config.duplicate_paragraphs),
        (
            "duplicate_paragraph_characters",
            lambda text: repeated_share(_paragraphs(text), by_characters=True),
            config.duplicate_paragraph_characters,
        ),
        *((f"top_ngrams.{n}", _top(n), bound) for n, bound in config.top_ngrams.items()),
        *((f"duplicate_ngrams.{n}", _repeated(n), bound) for n, bound in config.duplicate_ngrams.items()),
    ]
    return [
        document_rule(f"repetition.{name}", _at_most(measure, bound))
        for name, measure, bound in bounds
        if bound is not None
    ]


def repeated_share(parts: Sequence[str], *, by_characters: bool = False) -> float:
    """Share of parts that equal an earlier one. Example: a, b, a, a has 2 of 4."""
    seen: set[str] = set()
    repeated = total = 0
    for part in parts:
        size = len(part) if by_characters else 1
        total += size
        repeated += size if part in seen else 0
        seen.add(part)
    return repeated / total if total else 0.0


def top_ngram_share(words: Sequence[str], n: int) -> float:
    """Share of the characters of words that the most frequent n-gram covers; 0 where none occurs twice.

    Of several equally frequent ones the one that covers most counts.
    """
    counts = Counter(_ngrams(words, n))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    return max(_covered_share(words, n, {ngram}) for ngram, count in counts.items() if count == most)


def repeated_ngram_share(words: Sequence[str], n: int) -> float:
    """Share of the characters of words that lie in an n-gram which occurs more than once."""
    counts = Counter(_ngrams(words, n))
    return _covered_share(words, n, {ngram for ngram, count in counts.items() if count > 1})


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _covered_share(words: Sequence[str], n: int, wanted: set[tuple[str, ...]]) -> float:
    covered = [False] * len(words)
    for start, ngram in enumerate(_ngrams(words, n)):
        if ngram in wanted:
            covered[start : start + n] = [True] * n
    total = sum(map(len, words))
    return sum(len(word) for word, is_in in zip(words, covered, strict=True) if is_in) / total if total else 0.0


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in text.split("\n\n") if part.strip()]


def _top(n: int) -> Measure:
    return lambda text: top_ngram_share(words_of(text), n)


def _repeated(n: int) -> Measure:
    return lambda text: repeated_ngram_share(words_of(text), n)


def _at_most(measure: Measure, bound: float) -> Callable[[str], bool]:
    return lambda text: measure(text) <= bound
