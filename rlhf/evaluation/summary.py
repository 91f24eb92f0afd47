"""Measurements -> the numbers of summary.json, as plain values. What they mean in words is `verdicts`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from reward.composite import component_names
from rlhf.config import EvalConfig
from rlhf.evaluation.answers import Answers
from rlhf.evaluation.best_of_n import BestOfN, best_of_n, outcomes_against
from rlhf.evaluation.comparing import SwappedOutcomes
from rlhf.evaluation.gold_proxy import FEWEST_POINTS, Form, GoldPeak, find_peak
from rlhf.evaluation.length_control import length_controlled_win_rate
from rlhf.evaluation.measurements import Measured, Measurements
from rlhf.evaluation.task_scores import task_changes
from rlhf.evaluation.win_rates import Array, mean_over_prompts, score_gain, score_outcomes

Numbers = dict[str, Any]


def summarise(config: EvalConfig, measured: Measurements) -> Numbers:
    """All numbers of an evaluation but its counts of rows and its duration.

    Raises:
        ValueError: no prompt has an outcome.
    """
    mine, theirs = measured.candidate.answers, measured.baseline.answers
    judges = {name: _score_judge(config, mine, theirs, name) for name in mine.reward.components}
    judges |= {name: _comparing_judge(config, mine, theirs, found) for name, found in measured.verdicts.items()}
    summary: Numbers = {
        "candidate": _described(mine),
        "baseline": _described(theirs),
        **_versus(config, mine, theirs),
        "judges": judges,
        "kl": measured.candidate.kl,
    }
    if measured.others:
        summary["models"] = _models(config, measured)
    if measured.more is not None and config.best_of_n is not None:
        summary["best_of_n"] = [_best_of_n_numbers(one) for one in _best_of_n(config, measured.more, theirs)]
    peaks = _peaks(config, summary)
    if peaks:
        summary["gold_peaks"] = peaks
    changes = task_changes(measured.baseline.tasks, measured.candidate.tasks, seed=config.seed)
    if changes:
        summary["tasks"] = [_task_numbers(asdict(change)) for change in changes]
    return summary


def _described(answers: Answers) -> Numbers:
    return {
        "score": float(np.nanmean(answers.reward.scores)),
        "score_std": float(np.nanstd(answers.reward.scores)),
        "components": {name: float(np.nanmean(scores)) for name, scores in answers.reward.components.items()},
        "unscored": len(answers.reward.failures),
        "response_length_mean": float(answers.lengths.mean()),
        "eos_rate": float(np.mean([not completion.is_truncated for completion in answers.batch.completions])),
        "pretrain_ppl": answers.perplexity,
    }


def _bootstrap(config: EvalConfig) -> dict[str, int]:
    return {"resamples": config.bootstrap_resamples, "seed": config.seed}


def _wins(config: EvalConfig, mine: Answers, theirs: Answers, outcomes: Array) -> Numbers:
    """The win rate, raw and at equal length, and what became of the pairs."""
    controlled = length_controlled_win_rate(
        outcomes, mine.lengths - theirs.lengths, mine.prompt_ids, **_bootstrap(config)
    )
    return {
        **mean_over_prompts(outcomes, mine.prompt_ids, **_bootstrap(config)).named("win_rate"),
        **controlled.named("length_controlled_win_rate"),
        "ties": float(np.mean(outcomes[np.isfinite(outcomes)] == 0.5)),
        "lost_pairs": int(np.isnan(outcomes).sum()),
    }


def _versus(config: EvalConfig, mine: Answers, theirs: Answers, judge: str | None = None) -> Numbers:
    """Wins and gain by one judge's scores, or by the weighted sum of all."""
    a, b = (answers.reward.scores if judge is None else answers.reward.components[judge] for answers in (mine, theirs))
    gain = score_gain(a, b, mine.prompt_ids, **_bootstrap(config))
    return _wins(config, mine, theirs, score_outcomes(a, b)) | gain.named("gain")


def _score_judge(config: EvalConfig, mine: Answers, theirs: Answers, name: str) -> Numbers:
    return _versus(config, mine, theirs, name) | {"kind": "scores"}


def _comparing_judge(config: EvalConfig, mine: Answers, theirs: Answers, found: SwappedOutcomes) -> Numbers:
    reasons = sorted(set(found.reasons.values()))
    return _wins(config, mine, theirs, found.outcomes) | {
        "kind": "compares",
        "consistency": _finite(found.consistency),
        "first_preferred": _finite(found.first_preferred),
        "lost_because": reasons[:3],
    }


def _models(config: EvalConfig, measured: Measurements) -> dict[str, Numbers]:
    """Every point of reward over KL, the baseline at 0, from near to far."""
    theirs = measured.baseline.answers
    found: dict[str, Numbers] = {}
    for one in sorted([measured.baseline, measured.candidate, *measured.others], key=lambda model: model.kl):
        found[one.name] = {"kl": one.kl, **_described(one.answers), **_against_baseline(config, one, theirs)}
    return found


def _against_baseline(config: EvalConfig, one: Measured, theirs: Answers) -> Numbers:
    if one.answers is theirs:
        return {"win_rate": 0.5, "win_rate_low": 0.5, "win_rate_high": 0.5}
    outcomes = score_outcomes(one.answers.reward.scores, theirs.reward.scores)
    return mean_over_prompts(outcomes, theirs.prompt_ids, **_bootstrap(config)).named("win_rate")


def _best_of_n(config: EvalConfig, more: Answers, theirs: Answers) -> list[BestOfN]:
    assert config.best_of_n is not None, "asked for by the configuration"
    assert config.proxy is not None, "the configuration refuses best_of_n without proxy"
    components = {name: scores.astype(float) for name, scores in more.reward.components.items()}
    scores, opponents = more.reward.scores.astype(float), theirs.reward.scores.astype(float)
    measures = {
        **components,
        "win_rate": outcomes_against(scores, opponents, more.prompt_ids, theirs.prompt_ids),
        "score": scores,
    }
    proxy, counts = components[config.proxy], config.best_of_n.n
    return best_of_n(proxy, measures, more.prompt_ids, counts, **_bootstrap(config))


def _best_of_n_numbers(found: BestOfN) -> Numbers:
    means = dict(found.means)
    wins, score = means.pop("win_rate"), means.pop("score")
    components = {name: asdict(interval) for name, interval in means.items()}
    whole = wins.named("win_rate") | score.named("score")
    return {"n": found.n, "kl_bound": found.kl_bound, **whole, "components": components}


def _peaks(config: EvalConfig, summary: Mapping[str, Any]) -> list[Numbers]:
    """Where each gold source peaks over models and over n, where there are points enough for a fit."""
    if config.proxy is None:
        return []
    curves: list[tuple[Form, list[float], list[Numbers]]] = []
    models = list(summary.get("models", {}).values())
    curves.append(("rl", [one["kl"] for one in models], [one["components"] for one in models]))
    chosen = summary.get("best_of_n", [])
    means = [{name: mean["mean"] for name, mean in one["components"].items()} for one in chosen]
    curves.append(("best_of_n", [one["kl_bound"] for one in chosen], means))
    gold = [name for name in component_names(config.reward) if name != config.proxy]
    return [
        {"gold": name, **peak_numbers(find_peak(np.array(kl), np.array([row[name] for row in rows]), form))}
        for form, kl, rows in curves
        for name in gold
        if _has_points(kl, [row[name] for row in rows])
    ]


def _has_points(kl: Sequence[float], values: Sequence[float]) -> bool:
    return sum(math.isfinite(a) and math.isfinite(b) for a, b in zip(kl, values, strict=True)) >= FEWEST_POINTS


def peak_numbers(peak: GoldPeak) -> Numbers:
    """A peak as plain values; None stands for a KL that is never reached."""
    fit = {"form": peak.fit.form, "start": peak.fit.start, "alpha": peak.fit.alpha, "beta": peak.fit.beta}
    return fit | {
        "kl": _finite(peak.kl),
        "kl_low": _finite(peak.kl_low),
        "kl_high": _finite(peak.kl_high),
        "reward": peak.reward,
        "furthest_kl": peak.furthest_kl,
        "lost": peak.lost,
        "is_passed": peak.is_passed,
        "is_certain": peak.is_certain,
    }


def _task_numbers(change: Numbers) -> Numbers:
    difference = change.pop("difference")
    named = {
        "difference": difference["value"],
        "difference_low": difference["low"],
        "difference_high": difference["high"],
    }
    return change | named | {"finding": difference["finding"]}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
