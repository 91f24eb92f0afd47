"""PPO's clipped surrogate on tokens, and the weights that correct for samples of another policy.

Owns the loss of one micro-batch. Advantages come whitened from `experience`, log-probs from `policies`.

Three policies meet in an update, and may differ:

    policy     pi       is trained; its log-probs carry the gradient
    proximal   pi_prox  the policy as it stood at the start of the update; the clip keeps pi close to it
    behavior   pi_b     sampled the tokens; the data's distribution

Fresh samples, whose log-probs the sampler and the learner agree on: pi_prox = pi_b, plain PPO. Pass the behavior
log-probs and no weights.

Stale samples (generation ran ahead by some updates), or a sampler with other numerics: the clip must be centred on
pi_prox, or it would cut off, from the first pass on, tokens that only the age of the sample has moved; and the data's
distribution is corrected apart from it. This is the decoupled objective of Hilton et al. 2022 (arXiv:2110.00641), used
for asynchronous RLHF by Fu et al. 2025 (AReaL, arXiv:2505.24298):

    L = -mean[ w * min(r * A, clip(r, 1 - c, 1 + c) * A) ]     r = pi / pi_prox     w = min(pi_prox / pi_b, cap)

Pass the log-probs taken at the start of the update in the place of `behavior_logprobs`, and
`importance_weights=truncated_importance_weights(...)`.
"""

import math

import torch
from torch import Tensor

from rlhf.algorithms.kl import kl_k2, kl_k3
from rlhf.algorithms.masked import require_mask, token_mean, zero_outside

# exp(20) = 4.9e8. A clipped token has gradient 0, but 0 * exp(100) is NaN in float32. Beyond this bound, which only a
# bug or a diverged run reaches, the surrogate is flat; `ratio_max` shows it.
MAX_LOG_RATIO = 20.0


def clipped_policy_loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 0.2,
    dual_clip: float | None = None,
    importance_weights: Tensor | None = None,
    token_count: int | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped loss, summed over the selected tokens and divided by `token_count`.

        r    = exp(logprobs - behavior_logprobs)
        L    = -sum[ w * min(r * A, clip(r, 1 - clip_range, 1 + clip_range) * A) ] / token_count

    (Schulman et al. 2017, arXiv:1707.06347, eq. 7.) With `dual_clip`, where A < 0 the objective is at least
    dual_clip * A (Ye et al. 2020, arXiv:1912.09729), so that a ratio far above 1 cannot make one token dominate.

    Args:
        logprobs: (M, R) log-probs of the sampled tokens under the policy; carries the gradient.
        behavior_logprobs: (M, R) the denominator of the ratio, a constant: log-probs of the policy that sampled, or
            those taken at the start of the update where the two differ (see the module's docstring).
        advantages: (M, R), a constant.
        mask: (M, R) bool, True selects response tokens.
        clip_range: c, half-width of the ratio's trust region, > 0.
        dual_clip: bound on the ratio where the advantage is negative, > 1; None leaves it unbounded.
        importance_weights: (M, R) weight w of each token, a constant; None is 1.
        token_count: selected tokens of the whole minibatch (see `masked.token_mean`); None uses this mask's own.

    Returns:
        The loss, and metrics that add up over micro-batches to the mean over the minibatch's tokens:
        `approxkl` is the mean of log(r)^2 / 2 and `approxkl_k3` that of r - 1 - log(r), both nats per token from the
        denominator's policy to the one being trained (Schulman 2020);
        `clipfrac` the share of tokens whose gradient the clip removes, `ratio_mean` the mean of r;
        with dual_clip, `dual_clipfrac`, the share of tokens that it bounds;
        with importance_weights, `importance_weight_mean`;
        and `ratio_max`, the largest selected r, which combines by maximum (0 where nothing is selected).

    Raises:
        ValueError: if clip_range, dual_clip or token_count is out of range, nothing is selected while token_count is
            None, the mask is not bool or shapes differ.
    """
    _require_clip_ranges(clip_range, dual_clip)
    require_mask(mask, logprobs=logprobs, behavior_logprobs=behavior_logprobs, advantages=advantages)
    advantages = zero_outside(advantages.detach(), mask)
    log_ratio = zero_outside(logprobs - behavior_logprobs.detach(), mask)
    ratio = torch.exp(log_ratio.clamp(max=MAX_LOG_RATIO))
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    objective = torch.minimum(unclipped, clipped)

    per_token_metrics = _ratio_metrics(log_ratio.detach(), ratio.detach())
    per_token_metrics["clipfrac"] = (clipped < unclipped).to(ratio.dtype)
    if dual_clip is not None:
        bound = torch.where(advantages < 0, dual_clip * advantages, -math.inf)
        per_token_metrics["dual_clipfrac"] = (objective < bound).to(ratio.dtype)
        objective = torch.maximum(objective, bound)
    if importance_weights is not None:
        require_mask(mask, importance_weights=importance_weights)
        weights = zero_outside(importance_weights.detach(), mask)
        per_token_metrics["importance_weight_mean"] = weights
        objective = objective * weights

    loss = token_mean(-objective, mask, token_count)
    metrics = {name: token_mean(values, mask, token_count) for name, values in per_token_metrics.items()}
    metrics["ratio_max"] = zero_outside(ratio.detach(), mask).amax()
    return loss, metrics


def truncated_importance_weights(
    logprobs_at_update_start: Tensor, behavior_logprobs: Tensor, mask: Tensor, *, cap: float
) -> Tensor:
    """Token-level weights min(pi_prox / pi_b, cap), (M, R), detached, 0 outside the mask.

    The cap bounds the variance at the price of some bias (truncated importance sampling, Ionides 2008; the rho-bar of
    IMPALA, Espeholt et al. 2018, arXiv:1802.01561; for a sampler with other numerics than the learner, Yao et al. 2025,
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"). One weight per token ignores how the
    tokens before it were sampled; the unbiased weight, their product, has a variance that grows with the length.

    Args:
        logprobs_at_update_start: (M, R) log-probs of the sampled tokens under the policy before its first minibatch.
        behavior_logprobs: (M, R) the same as the sampler reported them.
        mask: (M, R) bool, True selects response tokens.
        cap: largest weight, >= 1, so that tokens on which the two agree keep weight 1.

    Raises:
        ValueError: if cap is below 1 or not finite, the mask is not bool or shapes differ.
    """
    if not (math.isfinite(cap) and cap >= 1.0):
        raise ValueError(f"cap is {cap}; it must be finite and >= 1: 2 is a usual value")
    require_mask(mask, logprobs_at_update_start=logprobs_at_update_start, behavior_logprobs=behavior_logprobs)
    log_weights = (logprobs_at_update_start - behavior_logprobs).detach()
    return zero_outside(torch.exp(log_weights).clamp(max=cap), mask)


def _ratio_metrics(log_ratio: Tensor, ratio: Tensor) -> dict[str, Tensor]:
    denominator = torch.zeros_like(log_ratio)
    return {
        "approxkl": kl_k2(denominator, log_ratio),
        "approxkl_k3": kl_k3(denominator, log_ratio.clamp(max=MAX_LOG_RATIO)),
        "ratio_mean": ratio,
    }


def _require_clip_ranges(clip_range: float, dual_clip: float | None) -> None:
    if not clip_range > 0.0:
        raise ValueError(f"clip_range is {clip_range}; it must be > 0: 0.2 is the usual value")
    if dual_clip is not None and not (math.isfinite(dual_clip) and dual_clip > 1.0):
        raise ValueError(f"dual_clip is {dual_clip}; it must be finite and > 1: 3 is a usual value, None sets no bound")
