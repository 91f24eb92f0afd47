"""The critic's clipped loss, and how much of the returns it explains.

Owns nothing of returns (see `advantages.gae`) or of the loss coefficient (the learner's config).
"""

import torch
from torch import Tensor

from rlhf.algorithms.masked import masked_variance, require_mask, token_mean, zero_outside


def clipped_value_loss(
    values: Tensor,
    rollout_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_range: float = 0.2,
    token_count: int | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The worse of the clipped and the unclipped squared error, summed over tokens and divided by `token_count`.

        v_clip = rollout_values + clip(values - rollout_values, -clip_range, clip_range)
        L      = sum[ 0.5 * max((values - returns)^2, (v_clip - returns)^2) ] / token_count

    As in OpenAI's PPO code (baselines ppo2; Ziegler et al. 2019's too); it is in no equation of the PPO paper. The
    maximum removes the gradient of a token whose value has already moved by more than clip_range towards its return.

    Args:
        values: (M, R) values of the critic being trained, reward units; carries the gradient.
        rollout_values: (M, R) values that the returns were computed with, a constant.
        returns: (M, R) targets, a constant.
        mask: (M, R) bool, True selects response tokens.
        clip_range: reward units, > 0.
        token_count: selected tokens of the whole minibatch (see `masked.token_mean`); None uses this mask's own.

    Returns:
        The loss, and metrics that add up over micro-batches to the mean over the minibatch's tokens: `clipfrac`, the
        share of tokens whose gradient the clip removes; `squared_error` of the unclipped values; `value_mean`;
        `return_mean`.

    Raises:
        ValueError: if clip_range or token_count is out of range, nothing is selected while token_count is None, the
            mask is not bool or shapes differ.
    """
    if not clip_range > 0.0:
        raise ValueError(f"clip_range is {clip_range}; it must be > 0 (reward units): 0.2 is the usual value")
    require_mask(mask, values=values, rollout_values=rollout_values, returns=returns)
    values = zero_outside(values, mask)
    rollout_values = zero_outside(rollout_values.detach(), mask)
    returns = zero_outside(returns.detach(), mask)
    clipped_values = rollout_values + (values - rollout_values).clamp(-clip_range, clip_range)
    unclipped = (values - returns).square()
    clipped = (clipped_values - returns).square()
    loss = 0.5 * token_mean(torch.maximum(unclipped, clipped), mask, token_count)
    per_token_metrics = {
        # Within the range the two differ by rounding.
        "clipfrac": ((clipped > unclipped) & ((values - rollout_values).abs() > clip_range)).to(values.dtype),
        "squared_error": unclipped.detach(),
        "value_mean": values.detach(),
        "return_mean": returns,
    }
    return loss, {name: token_mean(metric, mask, token_count) for name, metric in per_token_metrics.items()}


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the selected tokens, a detached scalar.

    1 is a perfect critic, 0 one that is no better than a constant, below 0 one that is worse. NaN where all returns are
    equal: there is nothing to explain. It is a ratio of two variances: compute it on the whole step, for the values of
    its micro-batches do not add up.

    Args:
        values: (B, R) reward units.
        returns: (B, R) reward units.
        mask: (B, R) bool, True selects response tokens.

    Raises:
        ValueError: if the mask selects nothing, is not bool or shapes differ.
    """
    require_mask(mask, values=values, returns=returns)
    residual_variance = masked_variance((returns - values).detach(), mask)
    return_variance = masked_variance(returns.detach(), mask)
    explained = 1.0 - residual_variance / return_variance
    return torch.where(return_variance > 0, explained, torch.nan)
