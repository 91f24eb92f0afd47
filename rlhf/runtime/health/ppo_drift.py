"""Rules about where a PPO policy goes: away from its reference, into one answer, into answers without an end."""

import math
from functools import partial
from statistics import fmean, stdev

from rlhf.runtime.health.findings import above_limit, since_start
from rlhf.runtime.health.history import History
from rlhf.runtime.health.rule import Rule
from rlhf.runtime.metric_registry import format_value

NEGATIVE_KL, NEGATIVE_ERRORS, NEGATIVE_STEPS = -0.1, 3.0, 5
"""A single k1 estimate near 0 scatters around it; its mean over steps, beyond three standard errors, does not."""
RUNAWAY_FACTOR, RUNAWAY_STEPS = 3.0, 3
"""The adaptive controller moves its coefficient by 20 % a horizon at most; three times its target, it has lost."""
RUNAWAY_NATS, RUNAWAY_NATS_PER_TOKEN = 50.0, 0.5
"""At 50 nats a typical response is e^50 times as likely as under the reference: nothing that the reference, or a reward
model trained on its responses, has ever seen. Long responses may carry more, at a bounded rate per token."""
COLLAPSED_SHARE, COLLAPSE_STEPS, LOWEST_FIRST_ENTROPY = 0.25, 5, 0.05
"""Sound runs lose up to a half while they learn. A policy that starts below the floor has nothing to lose."""
EOS_DROP, EOS_STEPS = 0.3, 5
"""With 16 responses a step, the mean of five steps scatters by 0.06 at most."""
LENGTH_FACTOR, LENGTH_STEPS = 2.0, 5
"""Sound runs shorten or lengthen their responses by up to two thirds while they learn what pays."""

KL = "objective/kl"


def _negative_kl(history: History) -> str | None:
    values = history.last(KL, NEGATIVE_STEPS)
    if not values:
        return None
    mean, standard_error = fmean(values), stdev(values) / math.sqrt(NEGATIVE_STEPS)
    if mean >= min(NEGATIVE_KL, -NEGATIVE_ERRORS * standard_error):
        return None
    return f"{KL} is {format_value(mean)} nats per sequence on average over {NEGATIVE_STEPS} steps"


NEGATIVE_KL_TREND = Rule(
    name="negative_kl",
    severity="error",
    symptom=f"`{KL}` on average over {NEGATIVE_STEPS} steps below {NEGATIVE_KL:g} nats, and further below 0 than "
    f"{NEGATIVE_ERRORS:g} standard errors",
    cause="On the policy's own samples KL cannot be negative, so these log-probs are not those of the distribution "
    "that sampled: padding counted as response, a top-k, top-p or minimum-length filter in the engine, two "
    "temperatures, dropout, or an estimator for samples of another policy.",
    remedy="See that `policy/first_step_ratio_error` is near 0 and take filters out of the engine; give "
    "`model.pad_token` a token of its own. A larger `algorithm.kl.coefficient` makes it worse: the penalty now pays "
    "the policy for the error.",
    check=_negative_kl,
)


def _runaway_kl(history: History, target: float | None) -> str | None:
    kl = history.mean(KL, RUNAWAY_STEPS)
    if target is not None:
        limit = RUNAWAY_FACTOR * target
    else:
        length = history.mean("rollout/response_length_mean", RUNAWAY_STEPS)
        # The limit comes first: a length that is not logged is NaN, and max keeps its first where nothing is larger.
        limit = max(RUNAWAY_NATS, RUNAWAY_NATS_PER_TOKEN * length)
    return above_limit(KL, kl, limit, RUNAWAY_STEPS) if kl > limit else None


def kl_runaway(target: float | None) -> Rule:
    """KL far above the adaptive controller's target, or far in absolute terms where the coefficient is fixed."""
    return Rule(
        name="kl_runaway",
        severity="error",
        symptom=f"`{KL}` on average over {RUNAWAY_STEPS} steps above {RUNAWAY_FACTOR:g} times `algorithm.kl.target`; "
        f"with a fixed coefficient, above {RUNAWAY_NATS:g} nats and {RUNAWAY_NATS_PER_TOKEN:g} nats per response token",
        cause="The policy has left the text that the reward model was trained on and that the reference finds likely; "
        "the penalty is too weak for the size of the updates. Scores mean little out there.",
        remedy="Lower `optimizer.learning_rate`, raise `algorithm.kl.coefficient`, with an adaptive one lower "
        "`algorithm.kl.horizon` so that it reacts sooner, or bound each update with `algorithm.max_approx_kl=0.02`. "
        "Start a new `run_dir`: a policy out there rarely finds back.",
        check=partial(_runaway_kl, target=target),
    )


def _collapsed_entropy(history: History) -> str | None:
    key = "policy/entropy"
    first, now = history.first(key), history.mean(key, COLLAPSE_STEPS)
    collapsed = first > LOWEST_FIRST_ENTROPY and now < COLLAPSED_SHARE * first
    return since_start(key, now, first, COLLAPSE_STEPS) if collapsed else None


ENTROPY_COLLAPSE = Rule(
    name="entropy_collapse",
    severity="warning",
    symptom=f"`policy/entropy` on average over {COLLAPSE_STEPS} steps below {COLLAPSED_SHARE:g} of its first value",
    cause="The policy gives nearly the same answer every time: it has found one that pays, and stopped looking for "
    "others.",
    remedy="Read samples.jsonl for answers that repeat. Raise `algorithm.kl.coefficient` or lower "
    "`algorithm.kl.target`, lower `optimizer.learning_rate`, and take more prompts a step "
    "(`rollout.prompts_per_step`).",
    check=_collapsed_entropy,
)


def _fewer_ends(history: History) -> str | None:
    key = "rollout/eos_rate"
    first, now = history.first(key), history.mean(key, EOS_STEPS)
    return since_start(key, now, first, EOS_STEPS) if now < first - EOS_DROP else None


EOS_RATE_DROP = Rule(
    name="eos_rate_drop",
    severity="warning",
    symptom=f"`rollout/eos_rate` on average over {EOS_STEPS} steps more than {EOS_DROP:g} below its first value",
    cause="Responses no longer end by themselves: the reward pays for length, or scores what the token budget has cut "
    "off as if it were whole.",
    remedy="Set `algorithm.missing_eos`, so that a response without an end costs something. Where the answers are "
    "sound and only longer, raise `rollout.sampling.max_response_tokens`.",
    check=_fewer_ends,
)


def _drifted_length(history: History) -> str | None:
    key = "rollout/response_length_mean"
    first, now = history.first(key), history.mean(key, LENGTH_STEPS)
    drifted = now > LENGTH_FACTOR * first or now < first / LENGTH_FACTOR
    return since_start(key, now, first, LENGTH_STEPS) if drifted else None


LENGTH_DRIFT = Rule(
    name="length_drift",
    severity="warning",
    symptom=f"`rollout/response_length_mean` on average over {LENGTH_STEPS} steps more than {LENGTH_FACTOR:g} times "
    f"its first value, or less than 1/{LENGTH_FACTOR:g} of it",
    cause="The policy has found that length pays. Growing: the reward model likes long answers. Shrinking: it likes "
    "short ones, or the KL penalty, which is paid per token, outweighs the score.",
    remedy="Look at `objective/score_length_correlation`. Growing: train the reward model on comparisons whose sides "
    "are of equal length, or add a `length_penalty` to `reward`. Shrinking with a correlation near 0: lower "
    "`algorithm.kl.coefficient`.",
    check=_drifted_length,
)
