"""Bounds on length, words and symbols of a document, for any language (Rae et al. 2021, table A1 and section A.1.1).

Each measure is a function of the text; a bound turns it into a rule.
"""

from collections.abc import Callable, Sequence

from rlhf.corpus.config import QualityRules
from rlhf.corpus.rule import TextRule, document_rule
from rlhf.corpus.segments import has_letter, is_spaced, lines_of, words_of

_BULLETS = ("\N{BULLET}", "-", "*", "\N{EN DASH}", "\N{BLACK CIRCLE}", "\N{BLACK SMALL SQUARE}", "\N{MIDDLE DOT}")
_ELLIPSES = ("...", "\N{HORIZONTAL ELLIPSIS}")

Measure = Callable[[str], float | None]


def quality_rules(config: QualityRules) -> list[TextRule]:
    """The rules that are on, in the order of the configuration."""
    bounds: list[tuple[str, Measure, float | None, float | None]] = [
        ("min_words", word_count, config.min_words, None),
        ("max_words", word_count, None, config.max_words),
        ("min_mean_word_length", mean_word_length, config.min_mean_word_length, None),
        ("max_mean_word_length", mean_word_length, None, config.max_mean_word_length),
        ("max_symbol_ratio", symbol_ratio, None, config.max_symbol_ratio),
        ("max_bullet_lines", bullet_lines, None, config.max_bullet_lines),
        ("max_ellipsis_lines", ellipsis_lines, None, config.max_ellipsis_lines),
        ("min_alphabetic_words", alphabetic_words, config.min_alphabetic_words, None),
    ]
    rules = [
        document_rule(f"quality.{name}", _within(measure, low, high))
        for name, measure, low, high in bounds
        if low is not None or high is not None
    ]
    if config.stop_words:
        wanted, fewest = frozenset(word.casefold() for word in config.stop_words), config.min_stop_words
        rules.append(document_rule("quality.stop_words", lambda text: len(wanted & _folded_words(text)) >= fewest))
    return rules


def word_count(text: str) -> float:
    """Number of words."""
    return float(len(words_of(text)))


def mean_word_length(text: str) -> float | None:
    """Mean characters of the words of scripts with spaces; None where there is none."""
    lengths = [len(word) for word in words_of(text) if is_spaced(word)]
    return sum(lengths) / len(lengths) if lengths else None


def symbol_ratio(text: str) -> float | None:
    """The larger of number signs and ellipses, divided by words."""
    ellipses = sum(text.count(mark) for mark in _ELLIPSES)
    words = len(words_of(text))
    return max(text.count("#"), ellipses) / words if words else None


def bullet_lines(text: str) -> float | None:
    """Share of lines that begin with a bullet."""
    return _share([line.startswith(_BULLETS) for line in lines_of(text)])


def ellipsis_lines(text: str) -> float | None:
    """Share of lines that end in an ellipsis."""
    return _share([line.endswith(_ELLIPSES) for line in lines_of(text)])


def alphabetic_words(text: str) -> float | None:
    """Share of words with a letter."""
    return _share([has_letter(word) for word in words_of(text)])


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def _within(measure: Measure, low: float | None, high: float | None) -> Callable[[str], bool]:
    def holds(text: str) -> bool:
        value = measure(text)
        return value is None or ((low is None or value >= low) and (high is None or value <= high))

    return holds


def _folded_words(text: str) -> set[str]:
    return {word.strip(".,;:!?\"'()").casefold() for word in words_of(text)}
