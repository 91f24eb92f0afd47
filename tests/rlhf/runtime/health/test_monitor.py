import json
import math

from rlhf.runtime.health.monitor import QUIET_STEPS, HealthMonitor
from rlhf.runtime.health.rule import Alert, Rule, alert_of


def above(limit: float, name: str = "too_high", severity: str = "warning") -> Rule:
    def check(history) -> str | None:
        value = history.mean("loss/train", 1)
        return f"loss/train is {value}" if value > limit else None

    return Rule(name, severity, "too high", "because", "lower it", check)  # pyright: ignore[reportArgumentType]


def steps_alerted(values: list[float]) -> list[int]:
    monitor = HealthMonitor([above(1.0)])
    return [a.step for step, value in enumerate(values, 1) for a in monitor.observe(step, {"loss/train": value})]


def test_an_alert_carries_what_was_found_and_what_to_do() -> None:
    (alert,) = HealthMonitor([above(1.0)]).observe(7, {"loss/train": 2.5})
    assert alert == Alert(7, "too_high", "warning", "loss/train is 2.5", "because", "lower it")
    assert alert_of(json.loads(json.dumps(alert.as_row()))) == alert


def test_trouble_that_lasts_or_hovers_at_its_limit_is_told_once() -> None:
    assert steps_alerted([0.0] + 50 * [2.0]) == [2]
    assert steps_alerted(20 * [2.0, 0.0]) == [1]
    assert steps_alerted(3 * [2.0, *(QUIET_STEPS - 1) * [0.0]]) == [1]


def test_trouble_that_comes_back_after_a_quiet_time_is_told_again() -> None:
    assert steps_alerted([2.0, *QUIET_STEPS * [0.0], 2.0, 2.0]) == [1, 2 + QUIET_STEPS]


def test_rules_do_not_share_an_episode() -> None:
    monitor = HealthMonitor([above(1.0, "low"), above(3.0, "high")])
    raised = [[a.rule for a in monitor.observe(s, {"loss/train": v})] for s, v in enumerate([2.0, 4.0, 4.0], 1)]
    assert raised == [["low"], ["high"], []]


def test_replayed_rows_leave_the_monitor_where_a_straight_run_would_have_it() -> None:
    values = [0.0, 2.0, 0.0, *QUIET_STEPS * [0.0], 2.0, math.nan, 0.0, 2.0, *QUIET_STEPS * [0.5], 9.0]
    rows = [{"step": step, "loss/train": value} for step, value in enumerate(values, 1)]
    straight = HealthMonitor([above(1.0)])
    expected = [straight.observe(int(row["step"]), {"loss/train": float(row["loss/train"])}) for row in rows]
    assert sum(map(len, expected)) == 3
    for cut in range(len(rows)):
        resumed = HealthMonitor([above(1.0)])
        resumed.replay(rows[:cut])
        later = [resumed.observe(int(row["step"]), {"loss/train": float(row["loss/train"])}) for row in rows[cut:]]
        assert later == expected[cut:]
        assert resumed.summary() == straight.summary()


def test_the_summary_gives_the_worst_severity_and_every_alert() -> None:
    monitor = HealthMonitor([above(1.0, "low"), above(3.0, "high", "error")])
    assert monitor.summary() == {"verdict": "healthy", "alerts": []}
    monitor.observe(1, {"loss/train": 2.0})
    assert monitor.summary()["verdict"] == "warning"
    monitor.observe(2, {"loss/train": 4.0})
    assert monitor.summary() == {
        "verdict": "error",
        "alerts": [
            {"step": 1, "rule": "low", "severity": "warning", "finding": "loss/train is 2.0"},
            {"step": 2, "rule": "high", "severity": "error", "finding": "loss/train is 4.0"},
        ],
    }
