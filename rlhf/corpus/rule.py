"""What a rule is: a text in, what stays of it out. Owns no rule."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


class Rule(Protocol):
    """A rule of `rlhf corpus`, called with one document after the other."""

    @property
    def name(self) -> str:
        """Name in tables: the section and key of the configuration."""
        ...

    def apply(self, text: str, /) -> str:
        """What stays of a document; "" drops it."""
        ...

    def keep(self) -> None:
        """Says that the document of the last `apply` has passed all rules, for rules that compare documents."""
        ...


@dataclass(frozen=True, slots=True)
class TextRule:
    """A rule that looks at one document alone."""

    name: str
    apply: Callable[[str], str]

    def keep(self) -> None:
        """Nothing to remember."""


def line_rule(name: str, keeps: Callable[[str], bool]) -> TextRule:
    """Keeps the lines of which `keeps` is true, and the empty lines between them."""

    def apply(text: str) -> str:
        kept = [line for line in text.split("\n") if not line.strip() or keeps(line.strip())]
        return "\n".join(kept).strip("\n") if any(line.strip() for line in kept) else ""

    return TextRule(name, apply)


def document_rule(name: str, keeps: Callable[[str], bool]) -> TextRule:
    """Keeps the documents of which `keeps` is true, as they are."""
    return TextRule(name, lambda text: text if keeps(text) else "")
