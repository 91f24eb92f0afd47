"""Runs the rules after each step and tells each episode of trouble once.

Its state is a function of the rows of metrics.jsonl: `replay` of them is how a resumed run continues.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from rlhf.runtime.health.history import History
from rlhf.runtime.health.rule import Alert, Rule

HEALTH_SUMMARY = "health"
"""Key of `HealthMonitor.summary` in summary.json."""

QUIET_STEPS = 5
"""An episode has ended after so many steps in a row without a finding; one that hovers at its limit is told once."""


class HealthMonitor:
    """The rules of a run and what they have found so far.

    Args:
        rules: From `catalogue.rules_for`; alerts of one step come in this order.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._watches = [_Watch(rule) for rule in rules]
        self._history = History()
        self._alerts: list[Alert] = []

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alert]:
        """Takes the numbers of the next step; returns the alerts of episodes that begin with it."""
        self._history.append(step, metrics)
        found = [alert for watch in self._watches if (alert := watch.look(step, self._history)) is not None]
        self._alerts += found
        return found

    def replay(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Takes the rows of a run that is resumed; what they alert of has been told."""
        for row in rows:
            numbers = {key: cast(float, value) for key, value in row.items() if key != "step"}
            self.observe(cast(int, row["step"]), numbers)

    def restart(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Forgets everything but the rows of a run that was taken back to an earlier step."""
        self._watches, self._history, self._alerts = [_Watch(rule) for rule in self._rules], History(), []
        self.replay(rows)

    def summary(self) -> dict[str, object]:
        """`verdict` ("healthy", or the worst severity) and `alerts`: step, rule, severity and finding of each."""
        severities = {alert.severity for alert in self._alerts}
        verdict = "error" if "error" in severities else "warning" if severities else "healthy"
        shown = ("step", "rule", "severity", "finding")
        return {"verdict": verdict, "alerts": [{key: alert.as_row()[key] for key in shown} for alert in self._alerts]}


class _Watch:
    """A rule and whether its trouble lasts."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._quiet_steps: float = math.inf

    def look(self, step: int, history: History) -> Alert | None:
        finding = self._rule.check(history)
        if finding is None:
            self._quiet_steps += 1
            return None
        begins = self._quiet_steps >= QUIET_STEPS
        self._quiet_steps = 0
        return self._rule.alert(step, finding) if begins else None
