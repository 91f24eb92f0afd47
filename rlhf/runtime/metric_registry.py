"""Every metric a run may log: key, unit and meaning, each written down once, here.

Owns names. Where the numbers go is `metrics.py`'s business; the formulas stand beside the code that computes them.
"""

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Metric:
    """One documented number.

    Attributes:
        key: `<group>/<name>`; in a family, `<...>` stands for one path component of the user's choice.
        unit: Unit of the number; "1" for a pure number, "share" for one in [0, 1].
        description: What it is, and over what it is averaged.
    """

    key: str
    unit: str
    description: str

    @property
    def group(self) -> str:
        """The key's part before the first slash."""
        return self.key.split("/")[0]


GROUPS = {
    "objective": "What PPO maximises: the score, and the KL penalty that holds the policy near the reference.",
    "reward": "The score's components, each before weighting.",
    "loss": "What the optimizer minimises.",
    "policy": "The size and quality of the policy's updates.",
    "critic": "How well the critic predicts returns.",
    "rm": "Reward model, or the implicit reward of DPO, on ranked responses: training steps, and the held-out split.",
    "eval": "Held-out measurements.",
    "rollout": "The sampled responses.",
    "sync": "Weight transfer from learner to rollout workers.",
    "perf": "Throughput and memory.",
    "time": "Wall-clock seconds of each phase of a step.",
    "progress": "How far the run has come.",
}

_REWARD = "reward"
_PER_SEQUENCE = "nats per sequence"
_PER_TOKEN = "nats per token"

_DOCUMENTED = (
    Metric("objective/scores", _REWARD, "Mean score of the responses, before the KL penalty."),
    Metric("objective/scores_std", _REWARD, "Standard deviation of the scores over the step's responses."),
    Metric("objective/rlhf_reward", _REWARD, "Mean of score plus KL penalty: what PPO maximises."),
    Metric("objective/non_score_reward", _REWARD, "Mean over responses of the KL penalty, -kl_coef times KL."),
    Metric("objective/kl", _PER_SEQUENCE, "Mean over responses of the summed k1 KL estimate from policy to reference."),
    Metric("objective/kl_coef", "reward per nat", "Coefficient of the KL penalty in this step."),
    Metric(
        "objective/score_length_correlation", "1", "Pearson correlation of score and length; absent if one is constant."
    ),
    Metric("objective/lone_responses", "responses", "Responses whose group lost all others; their advantage is 0."),
    Metric("objective/equal_score_groups", "share", "Share of prompts whose responses all have the same score."),
    Metric("objective/entropy", _PER_SEQUENCE, "Mean over responses of the summed -log p of the sampled tokens."),
    Metric("loss/train", "nats", "Training loss of the step; for a language model, cross-entropy per token."),
    Metric("loss/retention", "nats", "What `retention` adds to the loss, weighed: KL per token, L2-SP or EWC."),
    Metric("loss/policy", "1", "Clipped policy loss, mean over the step's minibatches."),
    Metric("loss/value", "reward^2", "Clipped value loss, before its coefficient."),
    Metric("loss/ptx", _PER_TOKEN, "Cross-entropy on pretraining text, before its coefficient."),
    Metric("policy/approxkl", _PER_TOKEN, "Mean of log(ratio)^2 / 2: how far the update moved the policy."),
    Metric("policy/approxkl_k3", _PER_TOKEN, "Mean of ratio - 1 - log(ratio): the same distance by the k3 estimator."),
    Metric("policy/clipfrac", "share", "Share of tokens whose gradient the ratio clip removes."),
    Metric("policy/dual_clipfrac", "share", "Share of tokens that the dual clip bounds."),
    Metric("policy/skipped_minibatches", "minibatches", "Minibatches of the step that `max_approx_kl` left out."),
    Metric("policy/importance_weight_mean", "1", "Mean truncated importance weight, engine to learner."),
    Metric("policy/entropy", _PER_TOKEN, "Mean entropy of the policy's next-token distribution."),
    Metric("policy/ratio_mean", "1", "Mean probability ratio of policy to behavior."),
    Metric("policy/ratio_max", "1", "Largest probability ratio of the step."),
    Metric("policy/first_step_ratio_error", "1", "Largest |ratio - 1| before the first update; above rounding, a bug."),
    Metric("policy/grad_norm", "1", "Global gradient norm before clipping."),
    Metric("policy/lr", "1", "Learning rate of the policy."),
    Metric("policy/ptx_coefficient", "1", "Coefficient of the ptx loss that `algorithm.ptx.gradient_ratio` led to."),
    Metric("policy/ptx_gradient_ratio", "1", "Gradient norm of the weighted ptx loss over that of the policy loss."),
    Metric("critic/explained_var", "1", "1 - Var(returns - values) / Var(returns); 0 is no better than a constant."),
    Metric("critic/clipfrac", "share", "Share of tokens whose gradient the value clip removes."),
    Metric("critic/squared_error", "reward^2", "Mean squared distance of unclipped values from returns."),
    Metric("critic/value_mean", _REWARD, "Mean value over response tokens."),
    Metric("critic/return_mean", _REWARD, "Mean return over response tokens."),
    Metric("critic/grad_norm", "1", "Global gradient norm of the critic before clipping."),
    Metric("critic/lr", "1", "Learning rate of the critic."),
    Metric("rm/loss", "nats", "Loss of the step, as `loss` defines it: mean over pairs or choices, then prompts."),
    Metric("rm/centering", "reward^2", "Mean of (twice the mean score of a prompt)^2, before its coefficient."),
    Metric("rm/accuracy", "share", "Share of pairs ranked as the labels say; equal scores count one half."),
    Metric("rm/margin", _REWARD, "Mean score difference between better and worse response."),
    Metric("rm/chosen_mean", _REWARD, "Mean implicit reward of preferred responses; below 0 they lost probability."),
    Metric("rm/rejected_mean", _REWARD, "Mean implicit reward of the other responses."),
    Metric("rm/score_mean", _REWARD, "Mean score of all responses."),
    Metric("rm/score_std", _REWARD, "Standard deviation of the scores of all responses."),
    Metric("rm/grad_norm", "1", "Global gradient norm of the reward model before clipping."),
    Metric("rm/eval_loss", "nats", "As rm/loss, on the held-out split."),
    Metric("rm/eval_accuracy", "share", "As rm/accuracy, on the held-out split."),
    Metric("rm/eval_accuracy_low", "share", "Lower end of the 95 % interval of rm/eval_accuracy."),
    Metric("rm/eval_accuracy_high", "share", "Upper end of the 95 % interval of rm/eval_accuracy."),
    Metric("rm/eval_margin", _REWARD, "As rm/margin, on the held-out split."),
    Metric("eval/loss", _PER_TOKEN, "Cross-entropy on held-out text."),
    Metric("eval/perplexity", "1", "exp of the cross-entropy per token on held-out text."),
    Metric("eval/accuracy", "share", "Share of held-out texts that get their label."),
    Metric("eval/accuracy_low", "share", "Lower end of the 95 % interval of eval/accuracy."),
    Metric("eval/accuracy_high", "share", "Upper end of the 95 % interval of eval/accuracy."),
    Metric("eval/label_loss", "nats", "Mean -log p(label) of held-out texts."),
    Metric("eval/teacher_kl", _PER_TOKEN, "KL from teacher to student, KL(teacher || student), on held-out text."),
    Metric("eval/score_error", "reward^2", "Mean squared distance of the student's scores from the teacher's."),
    Metric("eval/score_correlation", "1", "Pearson correlation of the student's scores with the teacher's."),
    Metric("eval/pretrain_perplexity", "1", "Perplexity on held-out pretraining text."),
    Metric(
        "eval/alignment_tax", _PER_TOKEN, "Rise of the loss on held-out pretraining text since the start of the run."
    ),
    Metric("eval/win_rate", "share", "Share of prompts on which the candidate scores higher; ties count one half."),
    Metric("eval/win_rate_low", "share", "Lower end of the 95 % bootstrap interval of eval/win_rate."),
    Metric("eval/win_rate_high", "share", "Upper end of the 95 % bootstrap interval of eval/win_rate."),
    Metric(
        "eval/length_controlled_win_rate", "share", "As eval/win_rate, at answers of equal length (Dubois et al. 2024)."
    ),
    Metric("eval/length_controlled_win_rate_low", "share", "Lower end of the 95 % interval of that rate."),
    Metric("eval/length_controlled_win_rate_high", "share", "Upper end of the 95 % interval of that rate."),
    Metric("eval/kl", _PER_SEQUENCE, "KL from candidate to reference on held-out prompts."),
    Metric("eval/score", _REWARD, "Mean score of the answers to held-out prompts."),
    Metric("eval/proxy_score", _REWARD, "Mean score by the reward model that PPO was trained on."),
    Metric("eval/gold_score", _REWARD, "Mean score by a judge that training never saw."),
    Metric("eval/gold_win_rate", "share", "As eval/win_rate, decided by the gold judge."),
    Metric("eval/gold_win_rate_low", "share", "Lower end of the 95 % bootstrap interval of eval/gold_win_rate."),
    Metric("eval/gold_win_rate_high", "share", "Upper end of the 95 % bootstrap interval of eval/gold_win_rate."),
    Metric("eval/response_length_mean", "tokens", "Mean length of the answers to held-out prompts."),
    Metric("rollout/response_length_mean", "tokens", "Mean response length, end of sequence included."),
    Metric("rollout/response_length_max", "tokens", "Longest response of the step."),
    Metric("rollout/eos_rate", "share", "Share of responses that ended by themselves."),
    Metric("rollout/truncated_rate", "share", "Share of responses that the token budget cut off."),
    Metric("rollout/policy_version", "updates", "Version of the policy that sampled; of the oldest sample."),
    Metric("rollout/policy_age", "updates", "Updates between the policy that sampled and the one that learns; mean."),
    Metric("rollout/stale", "responses", "Responses dropped because they were older than `rollout.max_policy_age`."),
    Metric("rollout/dropped", "responses", "Responses lost to a failed prompt or a failed reward; never scored 0."),
    Metric("rollout/restarts", "workers", "Rollout workers that died or hung and were replaced."),
    Metric("rollout/retries", "calls", "Calls to rollout workers that were made again, whole or in parts."),
    Metric("sync/version", "updates", "Version that every rollout worker acknowledged."),
    Metric("sync/canary_max_logprob_diff", "nats", "Largest gap between learner and workers on canaries."),
    Metric("sync/bytes", "bytes", "Bytes sent to each worker."),
    Metric("perf/samples_per_s", "responses/s", "Responses of the step over its wall-clock time."),
    Metric("perf/tokens_per_s", "tokens/s", "Tokens of the step over its wall-clock time."),
    Metric("perf/padding_waste", "share", "Share of padding among the tokens the learner computed."),
    Metric("perf/peak_memory_mib", "MiB", "Largest memory of the process (device memory on a GPU)."),
    Metric("time/step", "s", "The whole step."),
    Metric("time/rollout", "s", "Sampling responses, with the transfer of weights that they waited for."),
    Metric("time/rollout_wait", "s", "Waiting for responses: all of time/rollout, unless generation runs ahead."),
    Metric("time/score", "s", "Scores, reference log-probabilities and values."),
    Metric("time/experience", "s", "Rewards, advantages and returns."),
    Metric("time/update", "s", "Gradient updates."),
    Metric("time/sync", "s", "Weight transfer and its verification."),
    Metric("time/eval", "s", "Held-out measurements and samples."),
    Metric("time/checkpoint", "s", "Saving the training state."),
    Metric("progress/step", "steps", "Step of the run; the horizontal axis in W&B."),
    Metric("progress/episodes", "responses", "Responses trained on since the start."),
    Metric("progress/epoch", "epochs", "Passes over the training data since the start."),
    Metric("progress/tokens", "tokens", "Tokens trained on since the start."),
    Metric("progress/sequences_per_step", "sequences", "Sequences of the step; fewer while `sequences_ramp` rises."),
    Metric("progress/rollbacks", "rollbacks", "How often the run was taken back to a checkpoint after a loss spike."),
    Metric("progress/skipped_sequences", "sequences", "Training sequences passed over because of loss spikes."),
    Metric("progress/lr", "1", "Learning rate."),
)

METRICS: dict[str, Metric] = {metric.key: metric for metric in _DOCUMENTED}

FAMILIES = (
    Metric("reward/<component>", _REWARD, "Mean score of one reward component, before weighting."),
    Metric("reward/<component>/disagreement", _REWARD, "Mean standard deviation over the members of an ensemble."),
    Metric("eval/<name>/<metric>", "", "A documented eval metric, of one of several models or judges."),
    Metric("reward/<component>/failed", "responses", "Responses that this component could not score; never scored 0."),
)

_COMPONENT = re.compile(r"[A-Za-z0-9_.-]+")


def find_metric(key: str) -> Metric | None:
    """The documentation of `key`, itself or as a member of a family; None where there is none."""
    if key in METRICS:
        return METRICS[key]
    parts = key.split("/")
    if not all(_COMPONENT.fullmatch(part) for part in parts):
        return None
    if len(parts) == 2 and parts[0] == "reward":
        return replace(FAMILIES[0], key=key)
    if len(parts) == 3 and parts[0] == "reward" and parts[2] == "disagreement":
        return replace(FAMILIES[1], key=key)
    if len(parts) == 3 and parts[0] == "reward" and parts[2] == "failed":
        return replace(FAMILIES[3], key=key)
    base = METRICS.get(f"eval/{parts[-1]}")
    if len(parts) == 3 and parts[0] == "eval" and base is not None:
        return replace(base, key=key, description=f"{base.description} ({parts[1]})")
    return None


def require_documented(keys: Iterable[str]) -> None:
    """Refuses a key that this file does not document.

    Raises:
        ValueError: names each such key and the closest documented one.
    """
    unknown = [key for key in keys if find_metric(key) is None]
    if unknown:
        raise ValueError(
            f"undocumented metric {', '.join(map(_with_hint, unknown))}; "
            "add it to rlhf/runtime/metric_registry.py with its unit and meaning, or correct the key"
        )


def registry_order(key: str) -> tuple[int, int, str]:
    """Sort key that puts metrics in the order of `GROUPS`, then in the order they are documented in."""
    groups, keys = list(GROUPS), list(METRICS)
    group = key.split("/")[0]
    return (
        groups.index(group) if group in groups else len(groups),
        keys.index(key) if key in METRICS else len(keys),
        key,
    )


def format_value(value: float, *, trim: bool = False) -> str:
    """A number for people: about four significant digits, thousands separated, exponents only where needed.

    With `trim` it ends without zeros after the decimal point; without, numbers of one size have one width.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    magnitude = abs(value)
    if value == 0:
        return "0"
    if magnitude < 1e-3 or magnitude >= 1e7:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{_trimmed(mantissa) if trim else mantissa}e{int(exponent)}"
    if float(value).is_integer() or magnitude >= 1e4:
        return f"{value:,.0f}"
    decimals = 3 - math.floor(math.log10(magnitude))
    text = f"{value:.{min(max(decimals, 0), 4)}f}"
    return _trimmed(text) if trim else text


def _trimmed(decimal: str) -> str:
    return decimal.rstrip("0").rstrip(".") if "." in decimal else decimal


def _with_hint(key: str) -> str:
    close = difflib.get_close_matches(key, METRICS, n=1)
    return f"'{key}' (close: '{close[0]}')" if close else f"'{key}'"
