"""Rules about PPO's updates: their size, the ratio they rest on, the critic behind them, the sampler after them."""

from functools import partial
from statistics import fmean

from rlhf.runtime.health.findings import above_limit, since_start
from rlhf.runtime.health.history import History
from rlhf.runtime.health.rule import Rule
from rlhf.runtime.metric_registry import format_value

EXACT_RATIO_ERROR = 0.01
"""In float32, two ways to compute the same log-prob differ by about 1e-5; a thousand times that is another policy."""
ROUNDED_RATIO_ERROR = 1.0
"""In bfloat16 the worst of a few thousand tokens is off by 0.15 to 0.3 by rounding; a factor of two is no rounding."""
CLIPPED_SHARE, CLIPPED_STEPS = 0.3, 5
"""With the usual clip range of 0.2 a sound update clips 0.05 to 0.2 of the tokens."""
OUTLIER_RATIO, OUTLIER_COUNT, OUTLIER_STEPS = 10.0, 3, 5
"""Far beyond any clip range. One such token in thousands happens in sound runs now and then, not in most steps."""
USELESS_COUNT, USELESS_STEPS = 12, 15
"""A new critic needs some steps, and a good one dips below 0 where the policy has just changed; neither lasts."""
CREEP_FACTOR, CREEP_FLOOR, CREEP_STEPS = 5.0, 1e-4, 5
"""The floor, in nats, is ten times float32's rounding; the factor is against rounding that is there from the start."""


def _ratio_off_one(history: History, limit: float) -> str | None:
    key = "policy/first_step_ratio_error"
    error = history.mean(key, 1)
    return above_limit(key, error, limit) if error > limit else None


def first_pass_ratio(*, is_float32: bool) -> Rule:
    """Before its first update, the learner must give sampled tokens the probability they were sampled with."""
    return Rule(
        name="first_pass_ratio",
        severity="error",
        symptom=f"`policy/first_step_ratio_error` above {EXACT_RATIO_ERROR:g} (in bfloat16 above "
        f"{ROUNDED_RATIO_ERROR:g}): before the first update of a step, policy and sampler disagree about the same "
        "tokens",
        cause="The engine did not sample from the policy that is trained: stale weights, a sampling filter or "
        "temperature that one side lacks, or positions shifted by padding. The ratio then corrects for nothing real.",
        remedy="Look at `sync/canary_max_logprob_diff`. Not near 0: the sampler's weights differ; try "
        "`rollout.engine.merge_adapter=false`. Near 0: compare temperature, filters, pad and stop tokens of engine "
        "and learner. Only rounding: `model.dtype=float32`, or let `algorithm.importance_cap=2` correct for it.",
        check=partial(_ratio_off_one, limit=EXACT_RATIO_ERROR if is_float32 else ROUNDED_RATIO_ERROR),
    )


def _clipped_share(history: History) -> str | None:
    share = history.mean("policy/clipfrac", CLIPPED_STEPS)
    return above_limit("policy/clipfrac", share, CLIPPED_SHARE, CLIPPED_STEPS) if share > CLIPPED_SHARE else None


CLIP_FRACTION = Rule(
    name="clip_fraction",
    severity="warning",
    symptom=f"`policy/clipfrac` above {CLIPPED_SHARE:g} on average over {CLIPPED_STEPS} steps",
    cause="The updates are so large that the clip removes the gradient of many tokens: later epochs learn little, and "
    "what they do move has left the region where the samples say anything.",
    remedy="Lower `optimizer.learning_rate` or `algorithm.epochs`, make minibatches larger (lower "
    "`algorithm.minibatches`), or end an update in time with `algorithm.max_approx_kl=0.02`.",
    check=_clipped_share,
)


def _ratio_outliers(history: History) -> str | None:
    ratios = history.last("policy/ratio_max", OUTLIER_STEPS)
    outliers = sum(ratio > OUTLIER_RATIO for ratio in ratios)
    if outliers < OUTLIER_COUNT:
        return None
    return (
        f"policy/ratio_max was above {OUTLIER_RATIO:g} in {outliers} of {OUTLIER_STEPS} steps, up to "
        f"{format_value(max(ratios))}"
    )


RATIO_OUTLIERS = Rule(
    name="ratio_outliers",
    severity="warning",
    symptom=f"`policy/ratio_max` above {OUTLIER_RATIO:g} in {OUTLIER_COUNT} of {OUTLIER_STEPS} steps",
    cause="Single tokens become ten times as likely within one step. Where their advantage is negative the clip does "
    "not bound their loss, so a handful of tokens decides the gradient.",
    remedy="Set `algorithm.dual_clip=3`, and lower `optimizer.learning_rate` or `algorithm.epochs`. If "
    "`policy/first_step_ratio_error` is large too, mend that first.",
    check=_ratio_outliers,
)


def _useless_critic(history: History) -> str | None:
    values = history.last("critic/explained_var", USELESS_STEPS)
    below = sum(value < 0 for value in values)
    if below < USELESS_COUNT:
        return None
    mean = format_value(fmean(values))
    return f"critic/explained_var was below 0 in {below} of {USELESS_STEPS} steps, {mean} on average"


EXPLAINED_VARIANCE = Rule(
    name="explained_variance",
    severity="warning",
    symptom=f"`critic/explained_var` below 0 in {USELESS_COUNT} of {USELESS_STEPS} steps",
    cause="The critic predicts returns worse than a constant would, so it adds noise to the advantages instead of "
    "taking it away.",
    remedy="Raise `critic.optimizer.learning_rate`. Where `critic/clipfrac` is high, raise "
    "`algorithm.value_clip_range`: it is in reward units and must be of the size of the rewards. Start the critic "
    "from the reward model (`critic.start=reward_model`).",
    check=_useless_critic,
)


def _canary_creep(history: History) -> str | None:
    key = "sync/canary_max_logprob_diff"
    first, now = history.first(key), history.mean(key, CREEP_STEPS)
    creeps = now > CREEP_FLOOR and now > CREEP_FACTOR * first
    return since_start(key, now, first, CREEP_STEPS) if creeps else None


CANARY_CREEP = Rule(
    name="canary_creep",
    severity="warning",
    symptom=f"`sync/canary_max_logprob_diff` on average over {CREEP_STEPS} steps above {CREEP_FLOOR:g} nats and above "
    f"{CREEP_FACTOR:g} times its first value",
    cause="With every update the sampler's weights drift further from the learner's: an adapter merged in low "
    "precision, or an update that leaves a tensor out. The run stops itself once the gap is certain.",
    remedy="Set `rollout.engine.merge_adapter=false` or `model.dtype=float32`.",
    check=_canary_creep,
)
