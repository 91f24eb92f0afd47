"""Over-optimisation in a PPO run: scores over the distance from the start, and where the ones not trained on peak.

Reads what the run has logged, and samples nothing. The law and its fit are `rlhf.evaluation.gold_proxy`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
from pydantic import TypeAdapter

from reward.composite import component_names
from reward.config import RewardSource
from rlhf.evaluation.gold_proxy import FEWEST_POINTS, GoldPeak, curve_points, find_peak
from rlhf.reports.charts import Chart, ReferenceLine, Series
from rlhf.reports.page import Section, Verdict
from rlhf.runtime.metric_registry import format_value
from rlhf.runtime.run_folder import Row

_KL, _PROXY = "objective/kl", "objective/scores"
_EXPLANATION = """What PPO was paid for, and a score that it was not, over the distance that the policy went. Where the
one rises and the other falls, the policy exploits the reward model's mistakes. The law of Gao et al. 2023 is fitted to
the score that was only watched: start + d (alpha - beta log d), with d the square root of the KL.

A peak is marked as the place to stop where its 95 % interval ends before the last step, and the fall from it exceeds
three standard errors."""
_SOURCES = TypeAdapter(tuple[RewardSource, ...])


def watched_sources(config: Mapping[str, Any]) -> list[str]:
    """Names of the reward sources of weight 0, which PPO logs and does not train on."""
    rewards = config.get("reward")
    if not isinstance(rewards, list):
        return []
    sources = _SOURCES.validate_python(cast(list[object], rewards))
    return [name for name, source in zip(component_names(sources), sources, strict=True) if source.weight == 0]


def over_optimisation(rows: Sequence[Row], config: Mapping[str, Any]) -> tuple[list[Verdict], list[Section]]:
    """Verdicts and a section for each watched source that was logged at enough steps; nothing in other runs."""
    verdicts: list[Verdict] = []
    charts: list[Chart] = []
    if not any(_KL in row for row in rows):
        return verdicts, []
    for name in watched_sources(config):
        points = [row for row in rows if {_KL, _PROXY, f"reward/{name}"} <= row.keys() and _is_finite(row[_KL])]
        if sum(_is_finite(row[f"reward/{name}"]) for row in points) < FEWEST_POINTS:
            continue
        peak = find_peak(_column(points, _KL), _column(points, f"reward/{name}"), "rl")
        charts.append(_chart(name, points, peak))
        if peak.is_certain:
            verdicts.append(_stop(name, points, peak))
    if not charts:
        return verdicts, []
    return verdicts, [Section("Over-optimisation", _EXPLANATION, charts=charts)]


def _stop(name: str, rows: Sequence[Row], peak: GoldPeak) -> Verdict:
    step = next((row["step"] for row in rows if cast(float, row[_KL]) >= peak.kl), rows[-1]["step"])
    where = f"peaks at a KL of {format_value(peak.kl)} nats, reached at step {step}," if peak.kl else "starts highest"
    return Verdict(
        f"Stop here: {name} {where} and has lost {format_value(peak.lost)} since, while {_PROXY} is optimised on "
        "(Gao et al. 2023). Take a checkpoint from before, or a KL target near that.",
        "bad",
    )


def _chart(name: str, rows: Sequence[Row], peak: GoldPeak) -> Chart:
    order = sorted(rows, key=lambda row: cast(float, row[_KL]))
    distances = [math.sqrt(max(cast(float, row[_KL]), 0.0)) for row in order]
    dots: dict[str, Any] = {"markers": True, "line": False}
    series = [
        Series("trained on", distances, [cast(float, row[_PROXY]) for row in order], **dots),
        Series(name, distances, [cast(float, row[f"reward/{name}"]) for row in order], **dots),
        Series(f"fit of {name}", *curve_points(peak.fit, peak.furthest_kl)),
    ]
    marks: list[ReferenceLine] = []
    if peak.is_passed:
        label = "stop here" if peak.is_certain else "peak, unsure"
        marks.append(ReferenceLine(math.sqrt(peak.kl), label, axis="x"))
    return Chart(
        f"{name} over what is trained on",
        "square root of the KL, nats an answer",
        "reward",
        series,
        marks,
        description=_in_words(peak),
    )


def _in_words(peak: GoldPeak) -> str:
    fit = asdict(peak.fit)
    said = ", ".join(f"{key} {format_value(fit[key])}" for key in ("start", "alpha", "beta"))
    if not peak.is_passed:
        return f"Fit: {said}. No peak up to {format_value(peak.furthest_kl, trim=True)} nats."
    if peak.kl_low is None or peak.kl_high is None:
        return f"Fit: {said}. Peak at {format_value(peak.kl)} nats; too few steps for an interval."
    end = format_value(peak.kl_high) if math.isfinite(peak.kl_high) else "infinity"
    return f"Fit: {said}. Peak at {format_value(peak.kl)} nats, 95 % interval {format_value(peak.kl_low)} to {end}."


def _column(rows: Sequence[Row], key: str) -> Any:
    return np.array([cast(float, row[key]) for row in rows], np.float64)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
