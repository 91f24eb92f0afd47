"""Documents through all rules, one at a time, with a tally for each rule.

Owns the order of rules and the accounting: the bytes that rules removed and those that stay add up to those that came.
Memory grows with the hashes of what was kept, not with its text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rlhf.corpus.c4_rules import cleaning_rules, sentence_count_rule
from rlhf.corpus.config import CorpusConfig
from rlhf.corpus.duplicates import ExactDuplicates, RepeatedSpans
from rlhf.corpus.quality_rules import quality_rules
from rlhf.corpus.repetition_rules import repetition_rules
from rlhf.corpus.rule import Rule

_SHOWN_CHARACTERS = 240


@dataclass(frozen=True, slots=True)
class Removed:
    """An example of what a rule took: row number and the beginning of the text."""

    row: int
    text: str


@dataclass(slots=True)
class Tally:
    """What one rule did.

    Attributes:
        rule: Its name.
        documents_dropped: Documents of which nothing was left.
        documents_shortened: Documents that lost a part.
        bytes_removed: UTF-8 bytes of both.
        examples: The first ones.
    """

    rule: str
    documents_dropped: int = 0
    documents_shortened: int = 0
    bytes_removed: int = 0
    examples: list[Removed] = field(default_factory=list[Removed])


class Cleaning:
    """Passes documents through rules.

    Args:
        rules: In order; a document that one drops never reaches the next.
        examples_per_rule: How many texts each tally keeps.

    Attributes:
        tallies: One for each rule.
        documents: Documents seen.
        kept_documents: Documents of which something stayed.
        bytes_before: UTF-8 bytes seen.
        bytes_after: UTF-8 bytes that stayed.
    """

    def __init__(self, rules: Sequence[Rule], *, examples_per_rule: int) -> None:
        self._rules = list(rules)
        self._examples = examples_per_rule
        self.tallies = [Tally(rule.name) for rule in rules]
        self.documents = self.kept_documents = self.bytes_before = self.bytes_after = 0

    def clean(self, text: str, *, row: int) -> str:
        """What stays of the next document; "" where it is dropped."""
        self.documents += 1
        self.bytes_before += utf8_bytes(text)
        for rule, tally in zip(self._rules, self.tallies, strict=True):
            before, text = text, rule.apply(text)
            if text != before:
                self._note(tally, before, text, row)
            if not text:
                return ""
        for rule in self._rules:
            rule.keep()
        self.kept_documents += 1
        self.bytes_after += utf8_bytes(text)
        return text

    def _note(self, tally: Tally, before: str, after: str, row: int) -> None:
        tally.bytes_removed += utf8_bytes(before) - utf8_bytes(after)
        if after:
            tally.documents_shortened += 1
        else:
            tally.documents_dropped += 1
        if len(tally.examples) < self._examples:
            tally.examples.append(Removed(row, _shown(before, after)))


def build_rules(config: CorpusConfig) -> list[Rule]:
    """The rules that a configuration turns on: single documents first, then what compares them, lengths last.

    Raises:
        ValueError: a file that a rule needs cannot be read.
    """
    rules: list[Rule] = []
    if config.c4 is not None:
        rules.extend(cleaning_rules(config.c4))
    if config.quality is not None:
        rules.extend(quality_rules(config.quality))
    if config.repetition is not None:
        rules.extend(repetition_rules(config.repetition))
    if config.exact_duplicates:
        rules.append(ExactDuplicates())
    if config.near_duplicates is not None:
        # Not at the top: its library is an extra, and only this rule needs it.
        from rlhf.corpus.near_duplicates import NearDuplicateDocuments  # noqa: PLC0415

        rules.append(NearDuplicateDocuments(config.near_duplicates, seed=config.seed))
    if config.c4 is not None and config.c4.repeated_spans:
        rules.append(RepeatedSpans())
    if config.c4 is not None and config.c4.min_sentences is not None:
        rules.append(sentence_count_rule(config.c4.min_sentences))
    return rules


def utf8_bytes(text: str) -> int:
    """Bytes of a text in UTF-8; a lone surrogate counts as three."""
    return len(text.encode("utf-8", "surrogatepass"))


def _shown(before: str, after: str) -> str:
    """The beginning of what was removed: the first line that is gone, or of the document where all of it is."""
    kept = set(after.split("\n"))
    gone = next((line for line in before.split("\n") if line.strip() and line not in kept), before) if after else before
    return gone if len(gone) <= _SHOWN_CHARACTERS else f"{gone[: _SHOWN_CHARACTERS - 3]}..."
