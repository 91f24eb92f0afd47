"""What an evaluation's numbers mean, in plain sentences. Numbers in, words out; nothing is measured here."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.reports.page import Verdict

Summary = Mapping[str, Any]

FEWEST_PROMPTS = 30
"""Below this an interval is wide, and its ends are rough."""


def verdicts_on(summary: Summary) -> list[Verdict]:
    """What to take away: who wins, whether by length, what was forgotten, where to stop, what was lost."""
    return [
        _winner(summary),
        *_by_length(summary),
        *_best_of_n(summary),
        *(peak_verdict(peak) for peak in summary.get("gold_peaks", ()) if peak["is_passed"]),
        *_tax(summary),
        *_forgotten(summary.get("tasks", ())),
        *_judges(summary["judges"]),
        *_data(summary),
    ]


def peak_verdict(peak: Mapping[str, Any]) -> Verdict:
    """Where a gold reward peaks, and whether that is more than noise."""
    gold, kl, lost = peak["gold"], peak["kl"], peak["lost"]
    where = "over n" if peak["form"] == "best_of_n" else "over the KL"
    if kl is None or not peak["is_passed"]:
        text = f"{gold} has no peak {where} up to {peak['furthest_kl']:.2f} nats: more optimisation has not cost any."
        return Verdict(text, "good")
    interval = ""
    if peak["kl_low"] is not None:
        end = "beyond the last point" if peak["kl_high"] is None else f"{peak['kl_high']:.2f}"
        interval = f" (95 % interval {peak['kl_low']:.2f} to {end})"
    peaked = (
        f"{gold} peaks {where} at {kl:.2f} nats{interval} and loses {lost:.3g} until {peak['furthest_kl']:.2f} nats"
    )
    if peak["is_certain"]:
        return Verdict(f"Stop here: {peaked}, while the proxy is optimised on (Gao et al. 2023).", "bad")
    return Verdict(f"The fit says that {peaked}; the points do not settle it.", "neutral")


def _winner(summary: Summary) -> Verdict:
    rate, low, high = (summary[f"win_rate{end}"] for end in ("", "_low", "_high"))
    said = f"The candidate wins {rate:.3f} of the comparisons (95 % interval {low:.3f} to {high:.3f})"
    at = f"{summary['kl']:.2f} nats from the baseline"
    if low > 0.5:
        return Verdict(f"{said}: better than the baseline, {at}.", "good")
    if high < 0.5:
        return Verdict(f"{said}: worse than the baseline, {at}.", "bad")
    return Verdict(f"{said}: not shown to be better or worse than the baseline, {at}.", "warning")


def _by_length(summary: Summary) -> list[Verdict]:
    rate, low, high = (summary[f"length_controlled_win_rate{end}"] for end in ("", "_low", "_high"))
    raw = _side(summary["win_rate_low"], summary["win_rate_high"])
    if raw == _side(low, high):
        return []
    change = summary["candidate"]["response_length_mean"] - summary["baseline"]["response_length_mean"]
    return [
        Verdict(
            f"At equal length the win rate would be {rate:.3f} (95 % interval {low:.3f} to {high:.3f}); its answers "
            f"are {abs(change):.1f} tokens {'longer' if change > 0 else 'shorter'} on average, and length "
            "explains part of the verdict.",
            "warning",
        )
    ]


def _side(low: float, high: float) -> int:
    return (low > 0.5) - (high < 0.5)


def _best_of_n(summary: Summary) -> list[Verdict]:
    """The candidate beside the best of n whose bound is the largest within the candidate's KL."""
    within = [one for one in summary.get("best_of_n", ()) if one["kl_bound"] <= summary["kl"]]
    if not within:
        return []
    near = max(within, key=lambda one: one["kl_bound"])
    rate, low, high = (near[f"win_rate{end}"] for end in ("", "_low", "_high"))
    return [
        Verdict(
            f"Best of {near['n']} by the proxy, at most {near['kl_bound']:.2f} nats from the baseline, wins {rate:.3f} "
            f"({low:.3f} to {high:.3f}) of the comparisons; the candidate, at {summary['kl']:.2f} nats, "
            f"{summary['win_rate']:.3f}.",
            "warning" if low > summary["win_rate_high"] else "neutral",
        )
    ]


def _tax(summary: Summary) -> list[Verdict]:
    after, before = summary["candidate"]["pretrain_ppl"], summary["baseline"]["pretrain_ppl"]
    if after is None or before is None:
        return []
    change = after / before - 1.0
    text = f"Perplexity on held-out text goes from {before:.3f} to {after:.3f} ({change:+.1%})."
    return [Verdict(text, "warning" if change > 0.1 else "neutral")]


def _forgotten(tasks: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    if not tasks:
        return []
    found = [f"{_task(one)} {one['difference']:+.3f}" for one in tasks if one["finding"] == "below"]
    if found:
        return [Verdict(f"Forgotten, beyond noise: {'; '.join(found)}.", "bad")]
    return [Verdict("On no task is the candidate shown to be worse than the baseline.", "neutral")]


def _task(one: Mapping[str, Any]) -> str:
    return f"{one['task']} ({one['shots']} shots, {one['measure']})"


def _judges(judges: Mapping[str, Mapping[str, Any]]) -> list[Verdict]:
    said: list[Verdict] = []
    for name, numbers in judges.items():
        if numbers["lost_pairs"]:
            why = "; ".join(numbers.get("lost_because", ()))
            lost = f"{name} gave no verdict on {numbers['lost_pairs']} pairs, which are left out"
            text = f"{lost}: {why}." if why else f"{lost}."
            said.append(Verdict(text, "warning"))
        consistency = numbers.get("consistency")
        if consistency is not None and consistency < 0.5:
            text = (
                f"{name} turns its verdict with the order of the answers on {1 - consistency:.0%} of the pairs, which "
                "count as ties: it hardly tells these answers apart."
            )
            said.append(Verdict(text, "warning"))
    return said


def _data(summary: Summary) -> list[Verdict]:
    said: list[Verdict] = []
    if summary["prompts"] < FEWEST_PROMPTS:
        said.append(Verdict(f"{summary['prompts']} prompts are few: take the intervals as rough.", "warning"))
    if summary.get("prompts_seen_in_training"):
        text = f"{summary['prompts_seen_in_training']} of {summary['prompts']} prompts stand in the training data, too."
        said.append(Verdict(text, "warning"))
    return said
