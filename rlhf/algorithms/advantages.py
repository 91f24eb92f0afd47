"""From scores and KL to per-token rewards, advantages and returns.

Owns the reward of the RLHF episode, the rule for a missing end-of-sequence token, generalised advantage estimation, and
the two advantages that take the other responses to a prompt in place of a critic.
Whitening is not done here (see `masked.whiten`): returns, the critic's targets, come from unwhitened advantages.

Every mask is right-padded: the tokens of a response are columns 0 .. length - 1 of its row.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.masked import require_mask, zero_outside

MissingEosRule = Literal["none", "penalty", "replace"]


def apply_missing_eos(scores: Tensor, has_eos: Tensor, rule: MissingEosRule, *, value: float | None = None) -> Tensor:
    """Scores (B,) after the rule for responses that did not end by themselves.

    - "none": the score stays.
    - "penalty": score - value. Keeps the order among unfinished responses; TRL's `missing_eos_penalty`.
    - "replace": value in place of the score, -1 in Ziegler et al. 2019 and in Huang et al. 2024 (arXiv:2403.17031).
      A preference loss fixes scores only up to a constant, so a fixed value means something only once the reward model
      is normalised; where all scores lie below it, not ending is what it rewards.

    Args:
        scores: (B,) scores of whole responses.
        has_eos: (B,) bool, True where the response ended with its end-of-sequence token, False where it was cut off.
        rule: see above.
        value: score units; required by "penalty" (>= 0) and "replace" (any finite number), not allowed with "none".

    Raises:
        ValueError: if the rule is unknown, or `value` does not fit it, or the shapes differ.
    """
    require_mask(has_eos, scores=scores)
    if rule == "none":
        if value is not None:
            raise ValueError(f"value is {value}, but rule 'none' takes none: drop it, or use 'penalty' or 'replace'")
        return scores
    if rule not in ("penalty", "replace"):
        raise ValueError(f"rule is {rule!r}; allowed are none, penalty, replace: choose one of them")
    if value is None or not math.isfinite(value) or (rule == "penalty" and value < 0):
        allowed = "a finite number >= 0 (it is subtracted)" if rule == "penalty" else "a finite number"
        raise ValueError(f"value is {value}, but rule {rule!r} needs {allowed}: set it in units of the score")
    unfinished = scores - value if rule == "penalty" else torch.full_like(scores, value)
    return torch.where(has_eos, scores, unfinished)


def token_rewards(scores: Tensor, per_token_kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Reward of each response token, (B, R): -kl_coefficient * KL_t, plus the score at the last response token.

    The per-token form of r(x, y) - beta * log(pi / pi_ref) (Ziegler et al. 2019, eq. 2; Ouyang et al. 2022, eq. 2);
    0 outside the mask.

    Args:
        scores: (B,) score of each response.
        per_token_kl: (B, R) nats per token; k1 makes the sum over a response the equation's log-ratio.
        mask: (B, R) bool, right-padded, at least one token in each row.
        kl_coefficient: reward per nat.

    Raises:
        ValueError: if a row has no token (its score would be lost), the mask is not right-padded or shapes differ.
    """
    _require_right_padded(mask, per_token_kl=per_token_kl)
    if scores.shape != mask.shape[:1]:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} but mask has {mask.shape[0]} rows; one score per response is "
            f"needed: pass shape ({mask.shape[0]},)"
        )
    lengths = mask.sum(dim=1)
    if bool((lengths == 0).any()):
        empty_rows = [int(row) for row in torch.nonzero(lengths == 0)]
        raise ValueError(f"mask rows {empty_rows} select no token; each response needs at least one: drop those rows")
    rewards = -kl_coefficient * zero_outside(per_token_kl, mask)
    return rewards.scatter_add(1, (lengths - 1).unsqueeze(1), scores.unsqueeze(1).to(rewards.dtype))


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each response: (advantages, returns), both (B, R), detached.

        delta_t     = r_t + gamma * V_{t+1} - V_t          V = 0 after the last response token
        advantage_t = delta_t + gamma * lam * advantage_{t+1}
        return_t    = advantage_t + V_t

    (Schulman et al. 2016, arXiv:1506.02438, eq. 16.) Every response counts as a finished episode, one that was cut
    off at the token limit too: nothing is bootstrapped beyond it, `apply_missing_eos` is where a cut-off is dealt with.
    Advantages are not whitened. Both results are 0 outside the mask.

    Args:
        rewards: (B, R) reward of each token.
        values: (B, R) value before each token, in reward units.
        mask: (B, R) bool, right-padded; a row without tokens gives zeros.
        gamma: discount per token, in [0, 1].
        lam: weight of longer-horizon estimates, in [0, 1]; 0 is one-step TD, 1 is the Monte Carlo return.

    Raises:
        ValueError: if gamma or lam leaves [0, 1], the mask is not right-padded or shapes differ.
    """
    for name, number in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= number <= 1.0:
            raise ValueError(f"{name} is {number}; it must be in [0, 1]: the usual values are gamma 1, lam 0.95")
    _require_right_padded(mask, rewards=rewards, values=values)
    values = zero_outside(values.detach(), mask)
    rewards = zero_outside(rewards.detach(), mask)
    # Zeros outside the mask are all that ragged ends need: V_{t+1} = 0 after a last token, delta = 0 beyond it.
    next_values = torch.zeros_like(values)
    next_values[:, :-1] = values[:, 1:]
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = deltas.new_zeros(deltas.shape[0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + values


def rloo(rewards: Tensor, group: Tensor) -> Tensor:
    """REINFORCE leave-one-out: each reward minus the mean of the others in its group, (B,), detached.

        advantage_i = R_i - sum_{j != i} R_j / (n - 1)

    (Ahmadian et al. 2024, arXiv:2402.14740, section 3.3; Kool et al. 2019.) The baseline of a response does not contain
    its own reward, so the gradient is unbiased. A response that is alone in its group has nothing to be compared with:
    its advantage is 0.

    Args:
        rewards: (B,) reward of each whole response, KL penalty included.
        group: (B,) int64 >= 0, equal for the responses to one prompt; members need not stand together, and groups may
            be of different sizes.

    Raises:
        ValueError: if the shapes do not fit.
    """
    members, totals = _of_each_group(rewards.detach(), group)
    others = (totals - rewards.detach()) / (members - 1).clamp(min=1)
    return torch.where(members > 1, rewards.detach() - others, 0.0)


def grpo(rewards: Tensor, group: Tensor, *, divide_by_std: bool = True, epsilon: float = 1e-4) -> Tensor:
    """Group-relative advantages: each reward standardised within its group, (B,), detached.

        advantage_i = (R_i - mean(R)) / (std(R) + epsilon)

    (Shao et al. 2024, arXiv:2402.03300, section 4.1.2.) The standard deviation has n - 1 in its denominator, as in TRL;
    the paper does not say. Where we differ: R contains the KL penalty, which is standardised with it; the paper adds
    beta * k3 to the loss instead, out of reach of the division. And every token of a step has the same say in the loss;
    in the paper every response has, whatever its length. A response that is alone in its group has advantage 0.

    Args:
        rewards: (B,) reward of each whole response, KL penalty included.
        group: (B,) int64 >= 0, equal for the responses to one prompt (see `rloo`).
        divide_by_std: False gives R_i - mean(R) (Liu et al. 2025, arXiv:2503.20783), which is (n - 1) / n times `rloo`.
        epsilon: Added to the standard deviation; rewards that differ by rounding alone must not become advantages.

    Raises:
        ValueError: if the shapes do not fit.
    """
    members, totals = _of_each_group(rewards.detach(), group)
    centred = torch.where(members > 1, rewards.detach() - totals / members, 0.0)
    if not divide_by_std:
        return centred
    _, squares = _of_each_group(centred.square(), group)
    return centred / ((squares / (members - 1).clamp(min=1)).sqrt() + epsilon)


def group_sizes(group: Tensor) -> Tensor:
    """(B,) int64, how many responses share the group of each."""
    return torch.bincount(group)[group]


def _of_each_group(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) number of members of each response's group, and the sum of their values."""
    if values.dim() != 1 or values.shape != group.shape:
        raise ValueError(
            f"rewards has shape {tuple(values.shape)} and group {tuple(group.shape)}; both must be (responses,): give "
            "one reward and one group for each response"
        )
    totals = values.new_zeros(int(group.max()) + 1 if len(group) else 0).index_add(0, group, values)
    return group_sizes(group), totals[group]


def _require_right_padded(mask: Tensor, **tensors: Tensor) -> None:
    require_mask(mask, **tensors)
    if mask.dim() != 2:
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}; it must be (responses, tokens): add the missing dimension"
        )
    if bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise ValueError(
            "mask selects a token after one it leaves out; it must be right-padded: move padding to the end"
        )
