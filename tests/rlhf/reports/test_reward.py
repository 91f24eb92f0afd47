import json
from xml.etree import ElementTree

import numpy as np
import pytest

from reward.normalization import Normalizer
from reward.preferences import Comparison
from rlhf.reports.charts import render_chart
from rlhf.reports.page import render_page
from rlhf.reports.reward import print_outcome, reward_page
from rlhf.reports.reward_charts import distribution_chart, reliability_chart, slice_chart
from rlhf.reports.reward_sections import measured_sections
from rlhf.reports.reward_verdicts import verdicts_on
from rlhf.trainers.reward_outcome import held_out_summary
from rlhf.trainers.reward_selection import Rule, selection_summary

SCALE = Normalizer(mean=0.5, std=2.0, count=10, source="rows")


def comparison(number, origin="forum"):
    """The preferred response is the longer one in two of three pairs, and says so by no word of its own."""
    texts = ("one two three", "four") if number % 3 else ("four", "one two three")
    return Comparison(f"prompt {number}", texts, ((0,), (1,)), "", origin=origin)


TRAIN = [comparison(number) for number in range(30)]
EVALUATIONS = [
    {
        "step": 2,
        "rm/eval_loss": 0.6,
        "rm/eval_accuracy": 0.7,
        "rm/eval_accuracy_low": 0.6,
        "rm/eval_accuracy_high": 0.8,
    },
    {
        "step": 4,
        "rm/eval_loss": 0.7,
        "rm/eval_accuracy": 0.75,
        "rm/eval_accuracy_low": 0.6,
        "rm/eval_accuracy_high": 0.8,
    },
]


def summary_of(scores, *, rule: Rule = "last", temperature=None, count=60, **more):
    held_out = [comparison(number) for number in range(count)]
    scale = Normalizer(SCALE.mean, SCALE.std, SCALE.count, SCALE.source, temperature)
    selection = selection_summary(rule, 4 if rule == "last" else 2, EVALUATIONS)
    return json.loads(
        json.dumps(
            held_out_summary(TRAIN, held_out, scores(count), scale, seed=0)
            | {
                "selection": selection | {"is_split": rule != "last", "chooses": count, "reports": count},
                "normalizer": {"mean": 0.5, "std": 2.0, "count": 10, "source": "rows", "temperature": temperature},
                "seconds": 12.0,
            }
            | more
        )
    )


def right(share, size=2.0):
    """Scores that are right on the first part of the pairs, with a gap of `size`."""

    def scores(count):
        gaps = np.where(np.arange(count) < share * count, size, -size)
        return np.stack([gaps, np.zeros(count)], axis=1).reshape(-1)

    return scores


def likes_length(count):
    return np.array([len(text.split()) for number in range(count) for text in comparison(number).responses], float)


def said(summary, status):
    return [verdict.text for verdict in verdicts_on(summary) if verdict.status == status]


def test_a_model_that_beats_every_baseline_is_said_to():
    (text,) = said(summary_of(right(1.0)), "good")

    assert "better than every trivial baseline" in text
    assert "ahead of length of the response (95 % interval of the paired difference +0." in text


def test_a_model_that_is_worse_than_a_baseline_is_a_plain_warning():
    (text,) = said(summary_of(right(0.2)), "bad")

    assert "worse than a trivial baseline, 0.467 behind length of the response" in text


def test_a_lead_that_may_be_chance_is_no_victory():
    """Three in four against two in three: the point estimate leads, the paired interval reaches below zero."""
    summary = summary_of(right(0.75))

    assert summary["baselines"]["length"]["lead"]["value"] > 0
    (text,) = [text for text in said(summary, "warning") if "accuracy" in text]
    assert "not shown to beat" in text


def test_three_comparisons_decide_nothing():
    summary = summary_of(right(1.0), count=3)

    assert said(summary, "good") == []
    assert any("not shown to beat" in text for text in said(summary, "warning"))


def test_a_model_that_is_too_sure_is_told_the_remedy():
    (text,) = [text for text in said(summary_of(right(0.75, size=6.0)), "warning") if "calibration error" in text]

    assert "surer than it is right" in text
    assert "calibrate=temperature" in text


def test_a_model_that_goes_by_length_is_found_out():
    (text,) = [text for text in said(summary_of(likes_length), "warning") if "likes length" in text]

    assert "the longer in 100 % of the pairs, people in 67 %" in text


def sections_of(summary, evaluations=EVALUATIONS):
    return {section.title: section for section in measured_sections(summary, evaluations)}


def test_every_measurement_has_its_part_of_the_page():
    sections = sections_of(summary_of(right(0.75)))

    assert list(sections) == ["Accuracy", "Accuracy on parts", "Calibration", "Length", "Scores", "Best checkpoint"]
    baselines = [row[0] for row in sections["Accuracy"].tables[0].rows]
    assert baselines == ["reward model", "length of the response", "bag-of-words Bradley-Terry", "unigram naive Bayes"]
    parts = [row[0] for row in sections["Accuracy on parts"].tables[0].rows]
    assert [part for part in parts if part] == ["By length", "By score difference", "By source"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [("last", "no held-out comparison had a part in the choice"), ("lowest_loss", "because weights=lowest_loss")],
)
def test_the_page_says_which_weights_were_kept_and_why(rule, words):
    sections = sections_of(summary_of(right(0.75), rule=rule))

    assert words in sections["Best checkpoint"].text
    assert "the loss was lowest at step 2 (0.600, accuracy 0.700)" in sections["Best checkpoint"].text
    assert ("chose nothing" in sections["Accuracy"].text) == (rule != "last")


def test_a_run_resumed_at_its_end_has_no_evaluations_to_show():
    summary = summary_of(right(0.75))
    summary["selection"] = {"rule": "last", "kept_step": 4, "is_split": False, "chooses": 60, "reports": 60}

    assert "resumed at its end" in sections_of(summary, [])["Best checkpoint"].text


def test_an_ensemble_has_a_part_with_the_lines_that_use_it():
    part = {"name": "0.1 to 0.2", "pairs": 60, "accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8}
    numbers = {"accuracy": 0.7, "accuracy_low": 0.6, "accuracy_high": 0.8}
    ensemble = {
        **numbers,
        "lead": {"value": 0.01, "low": -0.02, "high": 0.03, "finding": "undecided"},
        "members": [{"path": "runs/a/model", **numbers}, {"path": "runs/a/member-1/model", **numbers}],
        "disagreement_mean": 0.4,
        "by_disagreement": [part],
    }

    section = sections_of(summary_of(right(0.75), ensemble=ensemble))["Ensemble"]

    assert "- {path: runs/a/member-1/model}" in section.listings[0].text
    assert "differ by 0.400" in section.text


def test_the_page_is_written_from_the_files_of_the_run_alone(tmp_path, capsys):
    summary = summary_of(right(0.75), temperature=3.0)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in EVALUATIONS))
    examples = [{"prompt": "<b>", "responses": [{"name": "preferred", "text": "<i>", "score": 1.0}]}]

    html = render_page(reward_page(tmp_path, examples))
    print_outcome(tmp_path, summary)

    assert "&lt;b&gt;" in html
    assert "With the temperature 3" in html
    printed = capsys.readouterr().out
    assert "naive bayes" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if not line.startswith("model"))


def test_a_run_without_held_out_comparisons_has_the_page_of_any_run(tmp_path):
    (tmp_path / "summary.json").write_text('{"accuracy": null, "baselines": {}}')

    assert reward_page(tmp_path, []).verdicts == []


def test_the_reliability_diagram_has_a_point_and_a_bar_for_each_bin_and_the_line_of_perfect_calibration():
    summary = summary_of(right(0.75, size=6.0), temperature=4.0)
    bins = summary["calibration"]["bins"]

    chart = reliability_chart(summary["calibration"], summary["calibration_scaled"])

    assert list(chart.series[0].x) == [one["confidence"] for one in bins]
    assert [series.name for series in chart.series] == ["scores as they are", "divided by temperature 4"]
    assert "as sure as right" in render_chart(chart)


def test_a_histogram_shows_shares_so_that_groups_of_different_size_compare():
    found = {"edges": [0.0, 1.0, 2.0], "preferred": [1, 3], "others": [6, 2]}

    chart = distribution_chart("Scores", "score", found)

    assert [list(series.y) for series in chart.series] == [[0.25, 0.75], [0.75, 0.25]]
    assert [series.x[0] for series in chart.series] == [0.5, 0.5]
    ElementTree.fromstring(render_chart(chart))


def test_parts_are_drawn_beside_the_accuracy_of_all():
    slices = [{"name": "< 0", "accuracy": 0.4, "accuracy_low": 0.2, "accuracy_high": 0.6}]

    svg = render_chart(slice_chart("By length", "words", slices, 0.7))

    assert "all pairs" in svg
    assert "&lt; 0" in svg
