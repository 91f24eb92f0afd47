"""Rules for every stage, and those about the loss of stages that descend one: pretraining, SFT, reward models."""

import math
from functools import partial

from rlhf.runtime.health.findings import above_median, off_best
from rlhf.runtime.health.history import History, rolling_means
from rlhf.runtime.health.rule import Rule
from rlhf.runtime.metric_registry import format_value

GRADIENT_FACTOR = 10.0
"""From step to step a gradient norm varies by a factor of two or three, in small batches five."""
LOSS_SPIKE_NATS = math.log(2)
"""Twice the perplexity; for a reward model, the whole distance from certain to guessing."""
SPIKE_STEPS, SPIKE_SEEN = 20, 10
"""Steps of the median that a spike is measured against, and how many of them there must be."""
DIVERGED_NATS, DIVERGED_WINDOW = math.log(2) / 2, 20
"""Half a spike, but as a mean over steps, which single batches do not move that far."""
HELD_OUT_NATS = 0.1
"""A tenth more perplexity; noise of a held-out split of a few hundred rows is a third of that."""

UNDEFINED_AT_TIMES = frozenset({"critic/explained_var"})
"""Returns without variance leave nothing to explain."""


def _not_finite(history: History) -> str | None:
    for key, value in history.newest.items():
        if not math.isfinite(value) and key not in UNDEFINED_AT_TIMES:
            return f"{key} is {format_value(value)}"
    return None


NON_FINITE_METRIC = Rule(
    name="non_finite_metric",
    severity="error",
    symptom="a metric is NaN or infinite",
    cause="An overflow, a division by nothing, or a reward that gave no number. The weights may still be sound: an "
    "update with such a loss or gradient is never taken.",
    remedy="The alert names the first such metric: look where it comes from. In the loss or the policy, lower "
    "`optimizer.learning_rate`; in a score, call the reward on the answers of that step.",
    check=_not_finite,
)

TRAINING_STOPPED = Rule(
    name="training_stopped",
    severity="error",
    symptom="the run ends with a loss, a gradient or a log-prob that is NaN or infinite",
    cause="A number has overflowed. The message names the first tensor that is not finite: a weight means that an "
    "earlier update was too large; a gradient means this batch, or a loss on the edge.",
    remedy="Start another `run_dir` with a lower `optimizer.learning_rate` or `optimizer.max_grad_norm`; with bfloat16 "
    "try `model.dtype=float32`; look for extreme values in the data and the rewards.",
    # Raised by the exception that ends the run; no row of metrics shows it.
    check=lambda _history: None,
)


LOSS_ROLLED_BACK = Rule(
    name="loss_rolled_back",
    severity="warning",
    symptom="a training loss stands out of those before it, and `spikes` is set",
    cause="Rows unlike the others, or a learning rate at the edge of what is stable.",
    remedy="Once: nothing, the run has gone on without those rows. Again and again: look at them, lower "
    "`optimizer.learning_rate`, or go back further with `spikes.rewind_steps`.",
    # Found by the trainer, before the step is taken; no row of metrics shows it.
    check=lambda _history: None,
)


def _gradient_spike(history: History, keys: tuple[str, ...]) -> str | None:
    for key in keys:
        found = history.newest_and_median(key, steps=SPIKE_STEPS, at_least=SPIKE_SEEN)
        if found is not None and found[0] > GRADIENT_FACTOR * found[1]:
            return above_median(key, *found)
    return None


def gradient_spike(*keys: str) -> Rule:
    """A gradient norm far above those of the steps before, of any of `keys`."""
    return Rule(
        name="gradient_spike",
        severity="warning",
        symptom=f"{' or '.join(f'`{key}`' for key in keys)} above {GRADIENT_FACTOR:g} times the median of the "
        f"{SPIKE_STEPS} steps before",
        cause="A batch with extreme values, or a learning rate at the edge of what is stable. Clipping bounds the size "
        "of that step, not its direction.",
        remedy="Once: look at the data of that step. Again and again: lower `optimizer.learning_rate` or "
        "`optimizer.max_grad_norm`, or warm up longer (`optimizer.warmup_fraction=0.05`).",
        check=partial(_gradient_spike, keys=keys),
    )


def _loss_spike(history: History, key: str) -> str | None:
    found = history.newest_and_median(key, steps=SPIKE_STEPS, at_least=SPIKE_SEEN)
    return above_median(key, *found) if found is not None and found[0] > found[1] + LOSS_SPIKE_NATS else None


def loss_spike(key: str) -> Rule:
    """The loss of one step far above those before."""
    return Rule(
        name="loss_spike",
        severity="warning",
        symptom=f"`{key}` more than {LOSS_SPIKE_NATS:.2g} nats above the median of the {SPIKE_STEPS} steps before",
        cause="Rows unlike the others, or a learning rate at the edge of what is stable.",
        remedy="Once: look at the rows of that step. Again and again: lower `optimizer.learning_rate` or warm up "
        "longer (`optimizer.warmup_fraction=0.05`).",
        check=partial(_loss_spike, key=key),
    )


def _diverged(history: History, key: str) -> str | None:
    values = [value for _, value in history.points(key)]
    if len(values) < 2 * DIVERGED_WINDOW:
        return None
    *earlier, now = rolling_means(values, DIVERGED_WINDOW)
    best = min(earlier)
    return off_best(key, now, best, DIVERGED_WINDOW) if now > best + DIVERGED_NATS else None


def loss_divergence(key: str) -> Rule:
    """The training loss rises and stays up."""
    return Rule(
        name="loss_divergence",
        severity="error",
        symptom=f"`{key}` on average over {DIVERGED_WINDOW} steps more than {DIVERGED_NATS:.2g} nats above its best",
        cause="Training undoes what it had learned: the learning rate is too high, or the data changes on the way.",
        remedy="Start another `run_dir` with a third of the `optimizer.learning_rate`, and data that is well mixed.",
        check=partial(_diverged, key=key),
    )


def _held_out_rise(history: History, key: str) -> str | None:
    values = [value for _, value in history.points(key)]
    if not values or values[-1] <= min(values) + HELD_OUT_NATS:
        return None
    return off_best(key, values[-1], min(values))


def held_out_rise(key: str) -> Rule:
    """The held-out loss rises: overfitting."""
    return Rule(
        name="held_out_rise",
        severity="warning",
        symptom=f"`{key}` more than {HELD_OUT_NATS:g} nats above its best",
        cause="The model learns the training rows by heart.",
        remedy="Train for fewer steps or epochs, or on more data; lower `optimizer.learning_rate`, or train a LoRA "
        "adapter instead of the whole model.",
        check=partial(_held_out_rise, key=key),
    )
