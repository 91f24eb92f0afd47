"""What the judgements allow to conclude, in plain sentences, for the terminal and the top of report.html.

Owns words and thresholds; every number comes from the outcome or the summary.
"""

from collections.abc import Mapping
from typing import Any

from reward.rankings.outcome import Outcome
from reward.rankings.standings import Standing, Standings
from rlhf.reports.page import Verdict

Summary = Mapping[str, Any]

_NAMED = 10
_RELIABLE, _TENTATIVE = 0.8, 0.667
"""Krippendorff's own bounds (2019, chapter 12) for conclusions that can be relied on, and for tentative ones."""


def verdicts_on(outcome: Outcome, summary: Summary) -> list[Verdict]:
    """What to conclude: models, agreement, raters, and what was left out."""
    verdicts = [Verdict(note, "warning") for note in outcome.notes]
    if outcome.standings is not None:
        verdicts += _standing_verdicts(outcome.standings)
    if outcome.agreement is not None:
        verdicts.append(_agreement_verdict(outcome.agreement.alpha, outcome.agreement.low, outcome.agreement.high))
    verdicts += _rater_verdicts(outcome)
    return verdicts + _row_verdicts(summary)


def _standing_verdicts(table: Standings) -> list[Verdict]:
    verdicts: list[Verdict] = []
    if len(table.models) > 1:
        best, second = table.models[:2]
        found = f"{best.model} is the strongest model ({_primary_text(best)}), {second.model} follows"
        low, high = shown_interval(best)[0], shown_interval(second)[1]
        if low > high:
            verdicts.append(Verdict(f"{found}, and their intervals do not overlap.", "good"))
        else:
            verdicts.append(Verdict(f"{found} ({_primary_text(second)}): the intervals overlap.", "neutral"))
    if table.bootstrap_lost and table.models[0].bootstrap_low is None:
        text = (
            f"{table.bootstrap_lost} bootstrap resamples had no finite fit, too many for an interval: some models meet "
            "or lose too seldom; add comparisons, or set fit.prior_std=1.0."
        )
        verdicts.append(Verdict(text, "warning"))
    return verdicts


def _agreement_verdict(alpha: float, low: float, high: float) -> Verdict:
    found = f"Krippendorff's alpha is {alpha:.2f} (95 % interval {low:.2f} to {high:.2f})"
    if low >= _RELIABLE:
        return Verdict(f"{found}: the raters agree well.", "good")
    if alpha >= _TENTATIVE:
        return Verdict(f"{found}: the raters agree, enough for tentative conclusions.", "neutral")
    if low > 0:
        return Verdict(f"{found}: the raters agree more than by chance, but one vote proves little.", "neutral")
    return Verdict(f"{found}: the raters do not agree more than by chance.", "warning")


def _rater_verdicts(outcome: Outcome) -> list[Verdict]:
    raters = outcome.raters.raters
    judged = [rater for rater in raters if rater.agreement.p_value is not None]
    if outcome.raters.outliers:
        names = ", ".join(outcome.raters.outliers[:_NAMED])
        rest = len(outcome.raters.outliers) - _NAMED
        more = f" and {rest} more" if rest > 0 else ""
        return [Verdict(f"Disagrees with all others more than chance allows: {names}{more}.", "warning")]
    if len(judged) > 2:
        return [Verdict(f"None of {len(judged)} raters disagrees with the others more than chance allows.", "good")]
    return []


def _row_verdicts(summary: Summary) -> list[Verdict]:
    counted = (
        ("skipped_rows", "bad rows were skipped"),
        ("tied_prompts", "prompts were left out because all their responses tie"),
        ("repeated_responses", "responses were left out because another one to the same prompt has the same text"),
    )
    verdicts = [Verdict(f"{summary[key]:,} {text}.", "warning") for key, text in counted if summary[key]]
    without_text = summary["prompts_without_text"]
    if without_text:
        verdicts.append(Verdict(f"{without_text:,} prompts have no texts and count for the strengths of models only."))
    return verdicts


def shown_interval(model: Standing) -> tuple[float, float]:
    """The bootstrap interval where there is one, else Fisher's."""
    if model.bootstrap_low is not None and model.bootstrap_high is not None:
        return model.bootstrap_low, model.bootstrap_high
    return model.fisher_low, model.fisher_high


def _primary_text(model: Standing) -> str:
    low, high = shown_interval(model)
    return f"{model.strength:+.2f}, 95 % interval {low:+.2f} to {high:+.2f}"
