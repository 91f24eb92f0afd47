"""What a reward model's measurements mean, in plain sentences. Numbers in, words out; nothing is measured here."""

from collections.abc import Mapping
from typing import Any

from rlhf.reports.page import Verdict

Summary = Mapping[str, Any]

BASELINES = {
    "length": "length of the response",
    "bag_of_words": "bag-of-words Bradley-Terry",
    "naive_bayes": "unigram naive Bayes",
}


def verdicts_on(summary: Summary) -> list[Verdict]:
    """What to take away: accuracy against the baselines, calibration, length."""
    found = [
        _against_baselines(summary),
        _calibration(summary["calibration_scaled"] or summary["calibration"]),
        _length(summary["length"]),
    ]
    return [verdict for verdict in found if verdict is not None]


def _against_baselines(summary: Summary) -> Verdict:
    """Beaten are the baselines whose paired difference is above zero; a warning names the first of the others."""
    accuracy, low, high = (summary[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
    said = f"Held-out accuracy is {accuracy:.3f} (95 % interval {low:.3f} to {high:.3f})"
    by_lead = sorted(summary["baselines"].items(), key=lambda entry: entry[1]["lead"]["value"])
    unbeaten = [entry for entry in by_lead if entry[1]["lead"]["finding"] != "above"]
    unbeaten.sort(key=lambda entry: entry[1]["lead"]["finding"] != "below")  # What is known to be better comes first.
    if not unbeaten:
        return Verdict(f"{said}: better than every trivial baseline, {_lead(*by_lead[0])}.", "good")
    (hardest, found), *others = unbeaten
    also = f" Nor is it shown to beat {' or '.join(BASELINES[name] for name, _ in others)}." if others else ""
    if found["lead"]["finding"] == "below":
        return Verdict(f"{said}: worse than a trivial baseline, {_lead(hardest, found)}.{also}", "bad")
    return Verdict(f"{said}: not shown to beat every trivial baseline, {_lead(hardest, found)}.{also}", "warning")


def _lead(name: str, result: Mapping[str, Any]) -> str:
    lead = result["lead"]
    interval = f"95 % interval of the paired difference {lead['low']:+.3f} to {lead['high']:+.3f}"
    side = f"behind {BASELINES[name]}" if lead["value"] < 0 else f"ahead of {BASELINES[name]}"
    return f"{abs(lead['value']):.3f} {side} ({interval})"


def _calibration(found: Mapping[str, Any]) -> Verdict | None:
    if found["error_low"] <= 0:
        return None
    return Verdict(
        f"sigmoid(score difference) is not the probability that people agree: expected calibration error "
        f"{found['error']:.3f} (95 % interval {found['error_low']:.3f} to {found['error_high']:.3f}), the model is "
        f"{_sense(found)}. The ranking is not touched by that; calibrate=temperature mends the probabilities.",
        "warning",
    )


def _sense(found: Mapping[str, Any]) -> str:
    if abs(found["overconfidence"]) < 0.5 * found["error"]:
        return "too sure of some pairs and not sure enough of others"
    return "surer than it is right" if found["overconfidence"] > 0 else "less sure than it is right"


def _length(found: Mapping[str, Any]) -> Verdict | None:
    if found["excess"] is None or found["excess"]["finding"] == "undecided":
        return None
    taste = "likes" if found["excess"]["value"] > 0 else "dislikes"
    return Verdict(
        f"The model {taste} length more than people do: of two responses of unequal length it prefers the longer in "
        f"{100 * found['longer_scored_higher']:.0f} % of the pairs, people in {100 * found['longer_preferred']:.0f} %. "
        "Watch objective/score_length_correlation and the length of responses in PPO.",
        "warning",
    )
