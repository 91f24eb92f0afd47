import math
from pathlib import Path

from rlhf.reports.health import health_sections, health_verdicts
from rlhf.reports.page import render_page
from rlhf.reports.training import generic_training_page
from rlhf.runtime.health.rule import Alert, Severity
from rlhf.runtime.run_folder import RunFolder


def alert(step: int, rule: str, severity: Severity = "warning") -> Alert:
    return Alert(step, rule, severity, f"{rule} at {step}", "Because of `x`.", "Lower `a.b`.")


def test_a_rule_has_one_verdict_and_errors_come_first() -> None:
    verdicts = health_verdicts([alert(3, "clips"), alert(5, "runaway", "error"), alert(9, "clips"), alert(20, "clips")])
    assert [(verdict.status, verdict.text) for verdict in verdicts] == [
        ("bad", "Step 5: runaway at 5 (runaway). Lower a.b."),
        ("warning", "Step 3, and 2 times more: clips at 3 (clips). Lower a.b."),
    ]


def test_the_table_holds_every_alert_with_its_cause() -> None:
    (section,) = health_sections([alert(3, "clips"), alert(9, "clips")])
    assert [row[0] for row in section.tables[0].rows] == [3, 9]
    assert section.tables[0].rows[0][3:] == ["clips at 3", "Because of x.", "Lower a.b."]
    assert health_sections([]) == []


def run_with(path: Path, *alerts: Alert, verdict: str) -> Path:
    with RunFolder.create(path, {}) as folder:
        folder.append_metrics(1, {"objective/kl": 1.0})
        folder.append_metrics(2, {"objective/kl": math.nan})
        for found in alerts:
            folder.append_alert(found.as_row())
        folder.write_summary({"steps": 2, "health": {"verdict": verdict, "alerts": []}})
    return path


def test_alerts_stand_at_the_top_of_the_report_once_and_not_in_the_summary_table(tmp_path: Path) -> None:
    page = generic_training_page(run_with(tmp_path, alert(2, "non_finite_metric", "error"), verdict="error"))
    assert [verdict.text for verdict in page.verdicts] == [
        "Step 2: non_finite_metric at 2 (non_finite_metric). Lower a.b."
    ]
    assert [section.title for section in page.sections[:2]] == ["Setting", "Health"]
    assert "Because of x." in render_page(page)


def test_a_run_that_was_watched_and_found_healthy_says_so(tmp_path: Path) -> None:
    page = generic_training_page(run_with(tmp_path, verdict="healthy"))
    assert (page.verdicts[0].text, page.verdicts[0].status) == ("No health rule found trouble.", "good")
