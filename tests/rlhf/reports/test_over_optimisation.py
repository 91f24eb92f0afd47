"""Over-optimisation on the page of a PPO run: from metrics alone, with a mark where to stop."""

import math
from pathlib import Path

import numpy as np

from rlhf.reports.over_optimisation import over_optimisation, watched_sources
from rlhf.reports.page import render_page
from rlhf.reports.training import generic_training_page
from rlhf.runtime.run_folder import RunFolder

CONFIG = {
    "reward": [
        {"kind": "length", "maximum_words": 3},
        {"kind": "function", "function": "a.b:gold_scores", "weight": 0.0},
        {"kind": "regex", "name": "polite", "pattern": "please", "weight": 0.0},
    ]
}


def metrics(*, peak_kl: float, furthest_kl: float = 20.0, noise: float = 0.05, steps: int = 40):
    """A run whose gold score peaks at a known KL, and whose trained score rises all the time."""
    rng = np.random.default_rng(0)
    rows = []
    for step, kl in enumerate(np.linspace(0.0, furthest_kl, steps), start=1):
        d = math.sqrt(kl)
        gold = 0.3 + (d * (math.log(math.sqrt(peak_kl)) + 1 - math.log(d)) if d else 0.0)
        rows.append(
            {
                "step": step,
                "objective/kl": float(kl),
                "objective/scores": 2 * d + noise * rng.normal(),
                "reward/gold_scores": gold + noise * rng.normal(),
            }
        )
    return rows


def test_sources_of_weight_0_are_the_ones_watched() -> None:
    assert watched_sources(CONFIG) == ["gold_scores", "polite"]
    assert watched_sources({"reward": [{"kind": "length"}]}) == []
    assert watched_sources({}) == []


def test_a_run_past_the_peak_is_told_where_to_stop() -> None:
    rows = metrics(peak_kl=6.0)
    (verdict,), (section,) = over_optimisation(rows, CONFIG)

    assert verdict.status == "bad"
    assert verdict.text.startswith("Stop here: gold_scores peaks at a KL of ")
    (chart,) = section.charts  # `polite` was never logged
    (mark,) = chart.references
    assert mark.label == "stop here"
    assert abs(mark.value**2 - 6.0) < 1.0
    step = int(verdict.text.split("reached at step ")[1].split(",")[0])
    assert abs(rows[step - 1]["objective/kl"] - 6.0) < 1.5


def test_a_run_before_the_peak_has_a_chart_without_a_mark() -> None:
    verdicts, (section,) = over_optimisation(metrics(peak_kl=60.0), CONFIG)
    assert verdicts == []
    assert not section.charts[0].references
    assert "No peak up to 20 nats" in section.charts[0].description


def test_runs_without_a_watched_score_or_with_few_steps_have_no_such_part() -> None:
    rows = metrics(peak_kl=6.0)
    assert over_optimisation(rows, {"reward": [{"kind": "length"}]}) == ([], [])
    assert over_optimisation(rows[:4], CONFIG) == ([], [])
    assert over_optimisation([{"step": 1, "loss/train": 1.0}], {}) == ([], [])


def test_the_page_of_a_run_shows_it(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        for row in metrics(peak_kl=6.0):
            folder.append_metrics(row.pop("step"), row)
        folder.write_summary({"steps": 40})
    page = generic_training_page(tmp_path / "run")
    assert page.verdicts[0].text.startswith("Stop here")
    html = render_page(page)
    assert "Over-optimisation" in html
    assert ">stop here<" in html
