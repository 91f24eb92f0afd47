"""The cleaning of C4 (Raffel et al. 2020, section 2.2), one function a rule.

Where we differ: sentences and words are found without a model of English (`segments`), marks of other scripts count
too, and there is no filter by language. Spans of three sentences that repeat are `duplicates`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf.corpus.config import C4Rules
from rlhf.corpus.rule import TextRule, document_rule, line_rule
from rlhf.corpus.segments import CLOSING_QUOTES, FINAL_MARKS, is_spaced, sentences_of, words_of

_CITATION = re.compile(r"\[(?:\d+|citation needed|edit)\]", re.IGNORECASE)
_QUOTES = tuple(CLOSING_QUOTES.replace(")", "").replace("'", ""))


def cleaning_rules(config: C4Rules) -> list[TextRule]:
    """The rules that look at one document alone; `min_sentences` comes apart, after duplicates.

    Whole documents come before lines: a page with code is dropped although its line of code would be, too.

    Raises:
        ValueError: the file of bad words cannot be read, or is empty.
    """
    rules: list[TextRule] = []
    if config.document_phrases:
        rules.append(document_rule("c4.document_phrases", _free_of(config.document_phrases)))
    if config.braces:
        rules.append(document_rule("c4.braces", lambda text: "{" not in text and "}" not in text))
    if config.bad_words is not None:
        pattern = bad_word_pattern(read_bad_words(config.bad_words))
        rules.append(document_rule("c4.bad_words", lambda text: pattern.search(text) is None))
    if config.citation_markers:
        rules.append(TextRule("c4.citation_markers", without_citations))
    if config.terminal_punctuation:
        rules.append(line_rule("c4.terminal_punctuation", ends_a_sentence))
    if config.min_words_per_line is not None:
        fewest = config.min_words_per_line
        rules.append(line_rule("c4.min_words_per_line", lambda line: len(words_of(line)) >= fewest))
    if config.line_phrases:
        rules.append(line_rule("c4.line_phrases", _free_of(config.line_phrases)))
    return rules


def sentence_count_rule(fewest: int) -> TextRule:
    """Drops documents of fewer than `fewest` sentences."""
    return document_rule("c4.min_sentences", lambda text: len(sentences_of(text)) >= fewest)


def without_citations(text: str) -> str:
    """The text without `[1]`, `[citation needed]` and `[edit]`."""
    found = _CITATION.sub("", text)
    return found if found.strip() else ""


def ends_a_sentence(line: str) -> bool:
    """Whether a line ends in a final mark, perhaps in quotes or brackets, or in a closing quotation mark."""
    return line.endswith(_QUOTES) or line.rstrip(CLOSING_QUOTES).endswith(tuple(FINAL_MARKS))


def read_bad_words(path: str) -> list[str]:
    """The words and phrases of a text file, one a line.

    Raises:
        ValueError: the file cannot be read as text, or holds none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"c4.bad_words={path}: cannot be read ({error}); name a UTF-8 text file, or set null"
        ) from error
    words = [word for line in lines if (word := line.strip())]
    if not words:
        raise ValueError(f"c4.bad_words={path}: holds no word; write one a line, or set c4.bad_words=null")
    return words


def bad_word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the words, in any case; as whole words, except in scripts without spaces."""
    forms = [rf"(?<!\w){re.escape(word)}(?!\w)" if is_spaced(word) else re.escape(word) for word in words]
    return re.compile("|".join(forms), re.IGNORECASE)


def _free_of(phrases: Sequence[str]) -> Callable[[str], bool]:
    folded = [phrase.casefold() for phrase in phrases]

    def is_free(text: str) -> bool:
        folded_text = text.casefold()
        return not any(phrase in folded_text for phrase in folded)

    return is_free
