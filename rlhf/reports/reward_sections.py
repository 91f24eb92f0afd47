"""The parts of a reward model's page: what was measured, with the words that say how to read it.

Owns words and layout. The numbers are those of summary.json, the drawings `reward_charts`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf.reports.charts import ReferenceLine
from rlhf.reports.page import Cell, Listing, Section, Table
from rlhf.reports.reward_charts import distribution_chart, reliability_chart, selection_chart, slice_chart
from rlhf.reports.reward_verdicts import BASELINES, Summary

_SLICES = {
    "length_difference": ("By length", "words by which the preferred response is longer"),
    "score_gap": ("By score difference", "size of the score difference"),
    "label_strength": ("By strength of the label", "how much better the labels say it is"),
    "source": ("By source", "column `source` of the row"),
}


def measured_sections(summary: Summary, evaluations: Sequence[Mapping[str, Any]]) -> list[Section]:
    """Everything that was measured on held-out comparisons.

    Args:
        summary: Of a run with held-out comparisons.
        evaluations: Rows of metrics.jsonl with held-out numbers.
    """
    return [
        _accuracy_section(summary),
        _slices_section(summary),
        _calibration_section(summary),
        _length_section(summary["length"]),
        _scores_section(summary),
        _selection_section(summary["selection"], evaluations),
        *_ensemble_sections(summary),
    ]


def interval_text(found: Mapping[str, Any], key: str) -> str:
    """The 95 % interval of a number that has `_low` and `_high` beside it."""
    return f"95 % interval {found[key + '_low']:.3f} to {found[key + '_high']:.3f}"


def _accuracy_section(summary: Summary) -> Section:
    rows: list[list[Cell]] = [["reward model", *_accuracy_cells(summary), None, None]]
    for name, found in summary["baselines"].items():
        lead = found["lead"]
        paired = f"{lead['low']:+.3f} to {lead['high']:+.3f}"
        rows.append([BASELINES[name], *_accuracy_cells(found), round(lead["value"], 3), paired])
    selection = summary["selection"]
    half = _other_half(selection) if selection["is_split"] else ""
    text = (
        f"Share of held-out pairs ranked as the labels say: {summary['pairs']:,} pairs of {summary['comparisons']:,} "
        f"comparisons, ties left out, equal scores one half, intervals over prompts.{half} The baselines are trained "
        "on the same comparisons and see responses only. The lead is the reward model's accuracy minus theirs on the "
        "same pairs; it counts where its interval (paired bootstrap over prompts) lies above zero."
    )
    columns = ("", "accuracy", "95 % interval", "lead", "95 % interval")
    return Section("Accuracy", text, tables=[Table(columns, rows, title="Held-out pair accuracy")])


def _other_half(selection: Mapping[str, Any]) -> str:
    return (
        f" Weights or temperature were chosen on {selection['chooses']} other comparisons, and everything here is "
        f"about the {selection['reports']} that chose nothing."
    )


def _accuracy_cells(found: Mapping[str, Any]) -> list[Cell]:
    return [round(found["accuracy"], 3), f"{found['accuracy_low']:.3f} to {found['accuracy_high']:.3f}"]


def _slices_section(summary: Summary) -> Section:
    shown = {key: slices for key, slices in summary["slices"].items() if slices}
    charts = [
        slice_chart(*_SLICES[key], slices, summary["accuracy"]) for key, slices in shown.items() if key != "source"
    ]
    rows = [
        [_SLICES[key][0] if place == 0 else "", part["name"], part["pairs"], *_accuracy_cells(part)]
        for key, slices in shown.items()
        for place, part in enumerate(slices)
    ]
    columns = ("", "", "pairs", "accuracy", "95 % interval")
    text = (
        "Where the model is right and where it is not. A model that goes by length is right where the preferred "
        "response is the longer one and wrong where it is the shorter; one that knows what it does not know is right "
        "more often where its scores are further apart."
    )
    return Section("Accuracy on parts", text, charts=charts, tables=[Table(columns, rows)])


def _calibration_section(summary: Summary) -> Section:
    plain, scaled = summary["calibration"], summary["calibration_scaled"]
    text = (
        f"Trained by -log sigmoid(score difference), the model claims that people agree with it with that probability. "
        f"The expected calibration error, the mean distance of what it claims from what is so, is {plain['error']:.3f} "
        f"({interval_text(plain, 'error')}); a perfectly calibrated model would show about "
        f"{plain['error_of_sampling']:.3f} on as many pairs."
    )
    if scaled:
        text += (
            f" With the temperature {scaled['temperature']:.3g}, fitted on the other half, it is {scaled['error']:.3f} "
            f"({interval_text(scaled, 'error')}). It is saved with the model's scale; a source of PPO with "
            "normalization: logits divides by it."
        )
    return Section("Calibration", text, charts=[reliability_chart(plain, scaled)])


def _length_section(found: Mapping[str, Any]) -> Section:
    rows = [
        ["over all responses", found["pearson"], found["spearman"]],
        ["within a prompt", found["pearson_within"], found["spearman_within"]],
    ]
    if found["excess"] is None:
        text = "All pairs have responses of the same length."
    else:
        excess = found["excess"]
        text = (
            f"Of {found['unequal_pairs']:,} pairs of unequal length people preferred the longer response in "
            f"{100 * found['longer_preferred']:.1f} %, the model in {100 * found['longer_scored_higher']:.1f} %: a "
            f"difference of {excess['value']:+.3f} (95 % interval {excess['low']:+.3f} to {excess['high']:+.3f}). "
            "Length is counted in words."
        )
    return Section("Length", text, tables=[Table(("correlation of score and length", "Pearson", "Spearman"), rows)])


def _scores_section(summary: Summary) -> Section:
    scale, distribution = summary["normalizer"], summary["distribution"]
    raw, normalized = distribution["raw"], distribution["normalized"]
    text = (
        f"Scores leave the model as (raw {_signed(-scale['mean'])}) / {scale['std']:.4g}: mean 0 and standard "
        f"deviation 1 on {scale['count']} responses ({scale['source']}). On the responses shown here they have mean "
        f"{normalized['mean']:.3f} and standard deviation {normalized['std']:.3f}, before that {raw['mean']:.3f} and "
        f"{raw['std']:.3f}."
    )
    charts = [
        distribution_chart("Raw scores", "raw score", raw, marks=[ReferenceLine(scale["mean"], "becomes 0", axis="x")]),
        distribution_chart("Normalised scores", "score as PPO sees it", normalized),
    ]
    return Section("Scores", text, charts=charts)


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value):.4g}"


def _selection_section(found: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Section:
    if not rows:
        return Section("Best checkpoint", "The run was resumed at its end and evaluated nothing.")
    charts = [
        selection_chart("Held-out loss", "nats a pair", rows, "rm/eval_loss", found),
        selection_chart("Held-out accuracy", "share of pairs", rows, "rm/eval_accuracy", found),
    ]
    return Section("Best checkpoint", " ".join(_selection_sentences(found)), charts=charts if len(rows) > 1 else ())


def _selection_sentences(found: Mapping[str, Any]) -> Iterator[str]:
    loss, accuracy, last = found["lowest_loss"], found["highest_accuracy"], found["last"]
    yield (
        f"Of {found['evaluations']} evaluations on {found['chooses']} held-out comparisons, the loss was lowest at "
        f"step {loss['step']} ({loss['loss']:.3f}, accuracy {loss['accuracy']:.3f}), the accuracy highest at step "
        f"{accuracy['step']} ({accuracy['accuracy']:.3f}); the last, at step {last['step']}, has loss "
        f"{last['loss']:.3f} and accuracy {last['accuracy']:.3f}."
    )
    if found["rule"] == "last":
        yield "The weights of the last step were kept, so no held-out comparison had a part in the choice."
        if loss["step"] != last["step"]:
            yield (
                "The loss can rise while the accuracy does not fall: then the model grows too sure of itself, not "
                "worse at ranking. weights=lowest_loss or weights=highest_accuracy keeps the best evaluation's "
                "weights, chooses on one half of the held-out prompts and reports the other."
            )
        return
    yield (
        f"Kept were the weights of step {found['kept_step']}, because weights={found['rule']}. The numbers above are "
        "those of the half that chose, too good by having chosen; what is reported was measured on the other half, "
        f"{found['reports']} comparisons."
    )


def _ensemble_sections(summary: Summary) -> list[Section]:
    found = summary.get("ensemble")
    if found is None:
        return []
    rows: list[list[Cell]] = [["mean of the members", *_accuracy_cells(found)]]
    rows += [[member["path"], *_accuracy_cells(member)] for member in found["members"]]
    lead = found["lead"]
    text = (
        f"{len(found['members'])} models of different seeds, each on its own scale. The accuracy of their mean is "
        f"{lead['value']:+.3f} against that of the first ({lead['low']:+.3f} to {lead['high']:+.3f}, paired). Their "
        f"scores of a response differ by {found['disagreement_mean']:.3f} on average (standard deviation over members, "
        "in units of the score). Disagreement is worth a penalty where accuracy falls with it. What all members have "
        "in common, their backbone and their data, they also get wrong together, and no disagreement shows it."
    )
    chart = slice_chart(
        "By disagreement", "spread over members of the score difference", found["by_disagreement"], found["accuracy"]
    )
    return [
        Section(
            "Ensemble",
            text,
            tables=[Table(("", "accuracy", "95 % interval"), rows)],
            charts=[chart],
            listings=[Listing("As a source of reward in PPO", _ensemble_yaml(found))],
        )
    ]


def _ensemble_yaml(found: Mapping[str, Any]) -> str:
    members = "\n".join(f"      - {{path: {member['path']}}}" for member in found["members"])
    return f"reward:\n  - kind: ensemble\n    disagreement_penalty: 1.0\n    members:\n{members}"
