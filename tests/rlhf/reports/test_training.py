import math
from pathlib import Path

import pytest

from rlhf.reports.page import ReportPage, Section, render_page
from rlhf.reports.training import centred_mean, generic_training_page, metric_chart, metric_sections
from rlhf.runtime.run_folder import RunFolder


def finished_run(path: Path, steps: int = 4) -> None:
    with RunFolder.create(path, {"seed": 11, "run_dir": "x"}) as folder:
        for step in range(1, steps + 1):
            metrics = {"objective/kl": step / 2, "rollout/dropped": 0.0, "time/step": 40.0, "loss/policy": float(step)}
            if step % 2 == 0:
                metrics |= {"eval/win_rate": step / 8, "eval/win_rate_low": step / 9, "eval/win_rate_high": step / 7}
            if step == 3:
                metrics["loss/policy"] = math.nan
            folder.append_metrics(step, metrics)
            folder.append_samples(step, [{"prompt": "Once", "response": f"r{step}", "score": step / 4}])
        folder.write_summary({"gold_win_rate": 0.75, "sft": {"kl": 0.0}, "ppo": {"kl": 3.5, "gold_win_rate": 0.75}})


def named(page: ReportPage, title: str) -> Section:
    return next(section for section in page.sections if section.title == title)


def test_metrics_are_grouped_in_documented_order_and_constants_listed_apart(tmp_path: Path) -> None:
    finished_run(tmp_path)
    page = generic_training_page(tmp_path, "My run")
    assert [section.title for section in page.sections] == [
        "Setting", "Summary", "Samples", "Objective", "Loss", "Evaluation", "Unchanged", "Record",
    ]  # fmt: skip
    assert [[chart.title for chart in section.charts] for section in page.sections[3:6]] == [
        ["objective/kl"], ["loss/policy"], ["eval/win_rate"],
    ]  # fmt: skip
    (unchanged,) = page.sections[6].tables
    assert [row[:2] for row in unchanged.rows] == [["rollout/dropped", 0.0], ["time/step", 40.0]]
    assert page.title == "My run"
    assert page.subtitle == "4 steps logged, the last is 4 in 2 min 40 s."


def test_an_interval_becomes_the_band_of_its_metric(tmp_path: Path) -> None:
    finished_run(tmp_path)
    (chart,) = next(s for s in generic_training_page(tmp_path).sections if s.title == "Evaluation").charts
    (series,) = chart.series
    assert (series.x, series.y) == ([2, 4], [0.25, 0.5])
    assert series.low == pytest.approx([2 / 9, 4 / 9])
    assert series.high == pytest.approx([2 / 7, 4 / 7])


def test_summary_numbers_and_parts_are_shown(tmp_path: Path) -> None:
    finished_run(tmp_path)
    page = generic_training_page(tmp_path)
    assert [(headline.label, headline.value) for headline in page.headlines] == [("gold win rate", 0.75)]
    (table,) = named(page, "Summary").tables
    assert list(table.columns) == ["", "kl", "gold win rate"]
    assert table.rows == [["sft", 0.0, None], ["ppo", 3.5, 0.75]]


def test_samples_follow_a_prompt_from_first_to_last(tmp_path: Path) -> None:
    finished_run(tmp_path)
    (sample,) = named(generic_training_page(tmp_path), "Samples").samples
    assert [(answer.name, answer.text) for answer in sample.answers] == [
        ("step 1", "r1"),
        ("step 3", "r3"),
        ("step 4", "r4"),
    ]
    assert sample.answers[-1].scores == {"score": 1.0}


def test_responses_of_single_steps_are_not_taken_for_followed_prompts(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as folder:
        for step in (0, 4):
            rows = [{"kind": kind, "prompt": "Once", "response": f"{kind} {step}"} for kind in ("worst", "fixed")]
            folder.append_samples(step, rows)
    (sample,) = named(generic_training_page(tmp_path), "Samples").samples
    assert [answer.text for answer in sample.answers] == ["fixed 0", "fixed 4"]


def test_a_conversation_is_shown_turn_by_turn(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as folder:
        folder.append_samples(0, [{"prompt": [{"role": "user", "content": "Hi"}], "response": "Hello"}])
    (sample,) = named(generic_training_page(tmp_path), "Samples").samples
    assert sample.prompt == "user: Hi"


def test_non_finite_values_and_a_missing_end_are_pointed_out(tmp_path: Path) -> None:
    finished_run(tmp_path)
    assert [verdict.text for verdict in generic_training_page(tmp_path).verdicts] == [
        "loss/policy was not finite at step 3."
    ]
    (tmp_path / "summary.json").unlink()
    last = generic_training_page(tmp_path).verdicts[-1]
    assert last.text.startswith("The run has not reached its end")


def test_a_run_without_a_step_and_an_empty_folder_have_a_page_too(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {}).close()
    assert generic_training_page(tmp_path / "run").subtitle == "No step was logged."
    assert "No step was logged." in render_page(generic_training_page(tmp_path / "absent"))


def test_the_page_holds_configuration_and_environment(tmp_path: Path) -> None:
    finished_run(tmp_path)
    html = render_page(generic_training_page(tmp_path))
    assert "seed: 11" in html
    assert "&#34;versions&#34;" in html


def test_the_centred_mean_worked_by_hand() -> None:
    assert centred_mean([1.0, 2.0, 6.0, 4.0], 3) == pytest.approx([1.5, 3.0, 4.0, 5.0])
    gap = centred_mean([1.0, math.nan, 5.0, 6.0], 3)
    assert math.isnan(gap[1])
    assert [gap[0], gap[2], gap[3]] == pytest.approx([1.0, 5.5, 5.5])


def test_only_a_long_noisy_metric_gets_a_mean_over_it() -> None:
    noisy = [{"step": step, "objective/kl": float(step % 2)} for step in range(100)]
    smooth = [{"step": step, "objective/kl": float(step)} for step in range(100)]
    raw, mean = metric_chart(noisy, "objective/kl").series
    assert raw.faint
    assert mean.name == "mean of 5 steps"
    assert len(metric_chart(smooth, "objective/kl").series) == 1
    assert len(metric_chart(noisy[:40], "objective/kl").series) == 1


def test_a_metric_that_the_registry_lacks_is_still_drawn() -> None:
    (section,) = metric_sections([{"step": 1, "other/thing": 1.0}, {"step": 2, "other/thing": 2.0}])
    assert (section.title, section.charts[0].title) == ("Other", "other/thing")
