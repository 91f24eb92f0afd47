"""Charts of a reward model's measurements: from the plain values of summary.json to what `charts` draws."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rlhf.reports.charts import Chart, ReferenceLine, Series

Values = Mapping[str, Any]


def reliability_chart(calibration: Values, scaled: Values | None) -> Chart:
    """How often the model is right, where it is so sure; with the temperature beside it where one was fitted."""
    series = [_reliability("scores as they are" if scaled else "pairs of like confidence", calibration)]
    if scaled:
        series.append(_reliability(f"divided by temperature {scaled['temperature']:.3g}", scaled))
    return Chart(
        "Reliability",
        "confidence: sigmoid of the score difference",
        "accuracy",
        series,
        identity="as sure as right",
        shown=(0.0, 1.0),
        description="Below the line the model is surer than it is right. Bars are 95 % intervals.",
    )


def _reliability(name: str, calibration: Values) -> Series:
    bins = calibration["bins"]
    return Series(
        name,
        [one["confidence"] for one in bins],
        [one["accuracy"] for one in bins],
        [one["accuracy_low"] for one in bins],
        [one["accuracy_high"] for one in bins],
        markers=True,
        line=len(bins) > 1,
    )


def slice_chart(title: str, x_label: str, slices: Sequence[Values], overall: float) -> Chart:
    """Accuracy on each part, beside that on all pairs."""
    return Chart(
        title,
        x_label,
        "accuracy",
        [
            Series(
                "accuracy",
                list(range(len(slices))),
                [one["accuracy"] for one in slices],
                [one["accuracy_low"] for one in slices],
                [one["accuracy_high"] for one in slices],
                markers=True,
                line=False,
            )
        ],
        [ReferenceLine(overall, "all pairs")],
        shown=(0.0, 1.0),
        categories=[one["name"] for one in slices],
    )


def distribution_chart(title: str, x_label: str, found: Values, *, marks: Sequence[ReferenceLine] = ()) -> Chart:
    """Scores of the responses that people ranked first, and of the others, as shares of each."""
    edges = found["edges"]
    centres = [(low + high) / 2 for low, high in pairwise(edges)]
    width = edges[1] - edges[0]
    series = [
        Series(name, centres, _shares(found[key]), bar_width=width)
        for name, key in (("ranked first", "preferred"), ("others", "others"))
    ]
    return Chart(title, x_label, "share of responses", series, marks)


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) or 1
    return [count / total for count in counts]


def selection_chart(title: str, unit: str, rows: Sequence[Values], key: str, found: Values) -> Chart:
    """A held-out number over training, with the step whose weights were kept."""
    low, high = ([row[key + end] for row in rows] if key + end in rows[0] else None for end in ("_low", "_high"))
    series = Series(title, [row["step"] for row in rows], [row[key] for row in rows], low, high)
    return Chart(title, "step", unit, [series], [ReferenceLine(found["kept_step"], "kept", axis="x")])
