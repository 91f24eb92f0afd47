"""What the health rules found, for the top of a report: one verdict a rule, and a table of all alerts.

Owns words and layout; the rules are in `rlhf.runtime.health`.
"""

from collections.abc import Sequence

from rlhf.reports.page import Section, Table, Verdict
from rlhf.runtime.health.rule import Alert, alert_of
from rlhf.runtime.run_folder import RunFiles

_COLUMNS = ("step", "rule", "severity", "found", "what it means", "what to do")
_EXPLANATION = "What the health rules found: an alert for each episode of trouble, at the step at which it began."


def alerts_in(files: RunFiles) -> list[Alert]:
    """The alerts of a run folder, oldest first."""
    return [alert_of(row) for row in files.read_alerts()]


def health_verdicts(alerts: Sequence[Alert]) -> list[Verdict]:
    """A sentence for each rule that found something, errors first, with what to do about it."""
    by_rule: dict[str, list[Alert]] = {}
    for alert in alerts:
        by_rule.setdefault(alert.rule, []).append(alert)
    return [_verdict(found) for found in sorted(by_rule.values(), key=lambda found: found[0].severity != "error")]


def health_sections(alerts: Sequence[Alert]) -> list[Section]:
    """A table of every alert; no section where there is none."""
    rows = [[a.step, a.rule, a.severity, a.finding, _plain(a.cause), _plain(a.remedy)] for a in alerts]
    return [Section("Health", _EXPLANATION, tables=[Table(_COLUMNS, rows)])] if rows else []


def _verdict(alerts: Sequence[Alert]) -> Verdict:
    first = alerts[0]
    again = f", and {len(alerts) - 1} times more" if len(alerts) > 1 else ""
    text = f"Step {first.step}{again}: {first.finding} ({first.rule}). {_plain(first.remedy)}"
    return Verdict(text, "bad" if first.severity == "error" else "warning")


def _plain(text: str) -> str:
    """The page shows text as it is, so the marks around names would stand there."""
    return text.replace("`", "")
