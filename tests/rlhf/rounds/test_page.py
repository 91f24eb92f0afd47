"""What the page of `rlhf rounds` concludes from the win rates."""

import json
from pathlib import Path

import pytest

from rlhf.cli import main
from rlhf.reports.page import render_page
from rlhf.rounds.page import rounds_page
from rlhf.runtime.run_folder import RunFiles


def rate(value: float, low: float, high: float) -> dict[str, float]:
    return {"comparisons": 50, "win_rate": value, "win_rate_low": low, "win_rate_high": high}


@pytest.mark.parametrize(
    ("second", "conclusion"),
    [
        (rate(0.85, 0.81, 0.90), "another round has paid"),
        (rate(0.80, 0.75, 0.85), "not shown to have paid or cost"),
        (rate(0.30, 0.25, 0.35), "another round has cost"),
    ],
)
def test_a_round_has_paid_only_beyond_both_intervals(tmp_path: Path, second: dict[str, float], conclusion: str) -> None:
    RunFiles(tmp_path).config_path.write_text("seed: 0\n", encoding="utf-8")
    summary = {"rounds": {"round-1": rate(0.7, 0.60, 0.80), "round-2": second}, "seconds_total": 3.0}
    page = rounds_page(tmp_path, summary, [])
    assert conclusion in page.verdicts[0].text
    assert conclusion in render_page(page)


def test_rlhf_report_writes_the_page_of_finished_rounds_again(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    files.config_path.write_text("seed: 0\n", encoding="utf-8")
    rounds = {"round-1": rate(0.7, 0.60, 0.80), "round-2": rate(0.85, 0.81, 0.90)}
    files.summary_path.write_text(json.dumps({"rounds": rounds, "seconds_total": 3.0}), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 0
    assert "another round has paid" in files.report_path.read_text(encoding="utf-8")
