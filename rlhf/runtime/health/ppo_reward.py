"""Rules about what PPO is paid for: scores that follow length, that rise alone, that say nothing, that go missing."""

import math
from collections.abc import Mapping
from functools import partial
from statistics import fmean

from rlhf.runtime.health.findings import since_start
from rlhf.runtime.health.history import History, rolling_means, step_noise
from rlhf.runtime.health.rule import Rule
from rlhf.runtime.metric_registry import format_value

CORRELATION, CORRELATION_STEPS = 0.6, 5
"""Length then explains more than a third (0.36) of the scores' spread. Of 64 responses without any relation, one step
shows a correlation within +-0.25."""
FALL_ERRORS, LOST_SHARE, RISE_ERRORS = 4.0, 0.2, 2.0
"""Standard errors, and the share of what had been gained. The fall is measured from the best window of the run, which
is the best partly by luck, and looked for at every step: with windows of a fifth of the run, four standard errors call
one flat run in a hundred a fall, be it of 50, 200 or 1000 steps; three call one in ten."""
TRAINED_WINDOW, SPARSE_WINDOW, WINDOW_SHARE = 5, 3, 0.2
"""Fewest points of a mean, of a score logged at every step and of one logged at evaluations; and their share of all."""
VANISHED_SHARE, VANISHED_STEPS = 0.01, 5
"""Whitening divides by the spread: what is left of it is blown up a hundredfold."""
DROPPED_SHARE, DROPPED_STEPS = 0.05, 5
"""A response that fails by accident costs less than that over five steps; what fails more often fails for a reason."""

TRAINED_SCORE = "objective/scores"
HELD_OUT_SCORE = "eval/score"


def _follows_length(history: History) -> str | None:
    key = "objective/score_length_correlation"
    correlation = history.mean(key, CORRELATION_STEPS)
    if not abs(correlation) > CORRELATION:
        return None
    liked = "longer" if correlation > 0 else "shorter"
    measured = f"{key} is {format_value(correlation)} on average over {CORRELATION_STEPS} steps"
    return f"{measured}: {liked} responses score higher"


SCORE_FOLLOWS_LENGTH = Rule(
    name="score_follows_length",
    severity="warning",
    symptom=f"`objective/score_length_correlation` beyond {CORRELATION:g}, either way, on average over "
    f"{CORRELATION_STEPS} steps",
    cause="The reward judges length more than content, and length is what the policy will learn.",
    remedy="Compare the reward model with the length baseline in its report. Train it on comparisons whose sides are "
    "of equal length, add a `length_penalty` to `reward`, or set `algorithm.missing_eos` where long answers are cut "
    "off.",
    check=_follows_length,
)


def _rises_alone(history: History, watched: Mapping[str, int]) -> str | None:
    for key, fewest in watched.items():
        fall = _fall_from_best(history, key, fewest)
        if fall is not None and _trained_score_rose(history, since_step=fall[1]):
            best, step, now = fall
            return (
                f"{key} fell from {format_value(best)} around step {step} to {format_value(now)} while {TRAINED_SCORE} "
                "rose"
            )
    return None


def _fall_from_best(history: History, key: str, fewest: int) -> tuple[float, int, float] | None:
    """Best mean, the step at its end, and the mean now; None unless it fell far, in errors and in what was gained."""
    points = history.points(key)
    window = max(fewest, int(WINDOW_SHARE * len(points)))
    if len(points) < 2 * window:
        return None
    values = [value for _, value in points]
    means = rolling_means(values, window)
    earlier, now = means[:-window], means[-1]
    best = max(range(len(earlier)), key=earlier.__getitem__)
    error = step_noise(values) * math.sqrt(2 / window)
    limit = max(FALL_ERRORS * error, LOST_SHARE * (earlier[best] - means[0]))
    return (earlier[best], points[best + window - 1][0], now) if earlier[best] - now > limit else None


def _trained_score_rose(history: History, *, since_step: int) -> bool:
    """Whether PPO's own score is above where the run began, beyond noise, and not below where it was at a step."""
    points = history.points(TRAINED_SCORE)
    values = [value for _, value in points]
    before = [value for step, value in points if step <= since_step][-TRAINED_WINDOW:]
    if not before:
        return False
    now, start = fmean(values[-TRAINED_WINDOW:]), fmean(values[:TRAINED_WINDOW])
    error = step_noise(values) * math.sqrt(2 / TRAINED_WINDOW)
    return now >= fmean(before) and now - start > RISE_ERRORS * error


def over_optimisation(watched_sources: tuple[str, ...]) -> Rule:
    """The score that is trained on rises while one that is only watched falls.

    Args:
        watched_sources: Names of reward sources of weight 0.
    """
    watched = {f"reward/{name}": TRAINED_WINDOW for name in watched_sources} | {HELD_OUT_SCORE: SPARSE_WINDOW}
    return Rule(
        name="over_optimisation",
        severity="error",
        symptom=f"`{TRAINED_SCORE}` up, while a score that is not trained on (`reward/<name>` of a source of weight 0, "
        f"or `{HELD_OUT_SCORE}`) has lost more than {LOST_SHARE:.0%} of its gain and {FALL_ERRORS:g} standard errors",
        cause="The policy exploits the mistakes of the reward model instead of getting better (Gao et al. 2023); "
        "where it is the held-out score that falls, it learns the training prompts by heart.",
        remedy="Use a checkpoint from before the fall, or fewer `steps`. For the next run raise "
        "`algorithm.kl.coefficient` or lower `algorithm.kl.target`, train the reward model on answers of the policy "
        "as it is now, and take more prompts.",
        check=partial(_rises_alone, watched=watched),
    )


def _vanished_spread(history: History) -> str | None:
    key = "objective/scores_std"
    first, spread = history.first(key), history.last(key, VANISHED_STEPS)
    if not spread or max(spread) > VANISHED_SHARE * first:
        return None
    return since_start(key, fmean(spread), first, VANISHED_STEPS)


SCORE_SPREAD = Rule(
    name="score_spread",
    severity="warning",
    symptom=f"`objective/scores_std` at most {VANISHED_SHARE:g} of its first value in {VANISHED_STEPS} steps, or 0 "
    "from the start",
    cause="All responses score the same: solved, saturated, or a reward that cannot tell them apart. Advantages are "
    "whitened, so the updates go on at full size and follow noise.",
    remedy="Solved: stop, or take harder prompts. Otherwise look at the scores in samples.jsonl; a rule that no "
    "response satisfies teaches nothing until an easier one leads to it.",
    check=_vanished_spread,
)


def _dropped_share(history: History, samples_per_step: int) -> str | None:
    share = history.mean("rollout/dropped", DROPPED_STEPS) / samples_per_step
    return f"{share:.0%} of the responses were dropped over {DROPPED_STEPS} steps" if share > DROPPED_SHARE else None


def dropped_samples(samples_per_step: int) -> Rule:
    """Too many responses are lost to a failed reward or worker."""
    return Rule(
        name="dropped_samples",
        severity="warning",
        symptom=f"`rollout/dropped` above {DROPPED_SHARE:.0%} of the responses on average over {DROPPED_STEPS} steps",
        cause="Rewards fail or workers are lost. What fails is rarely random, so the rest is a biased sample: a policy "
        "can learn to answer what cannot be scored.",
        remedy="`reward/<name>/failed` says which source it is, the log says why: mend that reward. Where workers run "
        "out of time, raise `rollout.timeout_seconds`, or lower `rollout.sampling.max_response_tokens`.",
        check=partial(_dropped_share, samples_per_step=samples_per_step),
    )
