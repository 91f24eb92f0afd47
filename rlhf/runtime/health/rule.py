"""What a health rule is, and the alert that it raises. Owns no condition."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from rlhf.runtime.health.history import History

Severity = Literal["warning", "error"]
"""`warning`: look at it. `error`: what comes out of the run is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule that found something, at the step at which its episode of trouble began.

    Attributes:
        step: Step of the run.
        rule: Name of the rule.
        severity: How bad it is.
        finding: What was measured, with the limit it broke.
        cause: What that usually means.
        remedy: What to change, which way.
    """

    step: int
    rule: str
    severity: Severity
    finding: str
    cause: str
    remedy: str

    def as_row(self) -> dict[str, object]:
        """The line of alerts.jsonl."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition over a run's history, with what it means and what to do about it.

    Attributes:
        name: How alerts and people call it.
        severity: Of every alert that it raises.
        symptom: The condition in words, thresholds included.
        cause: What the symptom usually means.
        remedy: Which configuration key to turn which way, and what to look at first.
        check: What was found in the history that ends with the newest step; None where nothing is wrong.
    """

    name: str
    severity: Severity
    symptom: str
    cause: str
    remedy: str
    check: Callable[[History], str | None]

    def alert(self, step: int, finding: str) -> Alert:
        """The alert of this rule for a finding."""
        return Alert(step, self.name, self.severity, finding, self.cause, self.remedy)


def alert_of(row: Mapping[str, object]) -> Alert:
    """The alert that `Alert.as_row` has written."""
    return Alert(**dict(row))  # pyright: ignore[reportArgumentType] - the row is our own line of JSON
