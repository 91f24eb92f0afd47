"""Losses that teach a reward model which response was preferred, pair by pair.

Owns the Bradley-Terry loss on pairs, its K-wise form on rankings, and the regulariser that keeps scores around 0. The
listwise loss is `listwise_losses`. How rankings become pairs of indices is `reward.preferences`; scores are one number
per response.
"""

import torch
from torch import Tensor
from torch.nn import functional

UNDECIDED = 0.5
"""Probability that the first of two tied responses wins."""


def pairwise_logistic_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean of -log sigmoid(chosen - rejected - margin) over the pairs.

    Bradley-Terry: sigmoid(chosen - rejected) is the probability that the chosen response wins (Ziegler et al. 2019,
    eq. 1 with two options). The margin is that of Llama 2 (Touvron et al. 2023, arXiv:2307.09288, eq. 2). Exact for
    differences of any size.

    Args:
        chosen: (pairs,) scores of the preferred responses.
        rejected: (pairs,) scores of the others.
        margin: (pairs,) by how much each preferred score should lead, in score units; None is 0.

    Returns:
        The loss, and metrics: `accuracy`, the share of pairs with chosen > rejected, where equal scores count one half;
        `margin`, the mean of chosen - rejected (the margin reached, not the one asked for).

    Raises:
        ValueError: if there is no pair, or shapes differ or are not 1-D.
    """
    require_same_vector(chosen=chosen, rejected=rejected)
    if margin is not None:
        require_same_vector(chosen=chosen, margin=margin)
    if chosen.numel() == 0:
        raise ValueError("chosen has no element; the mean over pairs needs at least one pair: skip empty batches")
    difference = chosen - rejected
    loss = _logistic_loss(difference if margin is None else difference - margin).mean()
    return loss, {name: metric.mean() for name, metric in _pair_metrics(difference).items()}


def ranked_pairs_loss(
    scores: Tensor,
    winner_index: Tensor,
    loser_index: Tensor,
    group_of_pair: Tensor,
    group_count: int,
    *,
    group_weight: Tensor | None = None,
    target: Tensor | None = None,
    margin: Tensor | None = None,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """K-wise ranking loss: mean of -log sigmoid(winner - loser) over the pairs of a group, then over groups.

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 1, where a group is the K responses to one prompt with its K-choose-2
    pairs. All pairs of a group share one forward pass over its K responses, so each response meets the optimizer once
    however many pairs it is in. With ties a group has fewer pairs, and the mean is over those. For K = 2 it is
    `pairwise_logistic_loss`.

    With targets t and margins m, and d = winner - loser - m, a pair costs the cross-entropy
    -t log sigmoid(d) - (1 - t) log sigmoid(-d); a tie is a pair with t = 0.5. Smoothing moves every target towards 0.5:
    t - label_smoothing * (2 t - 1), so a certain label becomes 1 - label_smoothing (conservative DPO's, Mitchell 2023).

    Args:
        scores: (S,) scores of all responses of all groups.
        winner_index: (Q,) int64, index into scores of each pair's better response.
        loser_index: (Q,) int64, index into scores of each pair's worse response.
        group_of_pair: (Q,) int64, group of each pair, in 0 .. group_count - 1; the pairs of a group stay in one call.
        group_count: groups with at least one pair in the whole minibatch. A call on part of them gives its share, so
            that the shares of micro-batches add up to the minibatch's loss.
        group_weight: (groups of this call,) factor of each group's mean; None is 1.
        target: (Q,) probability that the winner wins, 0.5 for a tie; None is 1.
        margin: (Q,) by how much the winner's score should lead, in score units; None is 0.
        label_smoothing: probability that a label is wrong, in [0, 0.5).

    Returns:
        The loss, and metrics that add up the same way, over the pairs that are not ties and with every group alike:
        `accuracy`, where equal scores count one half, and `margin`, the winner's score minus the loser's.

    Raises:
        ValueError: if group_count is below 1, the shapes do not fit, or label_smoothing is out of range.
    """
    if not 0.0 <= label_smoothing < UNDECIDED:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be in [0, 0.5): at 0.5 nothing is preferred")
    require_pairs(winner_index, loser_index, group_of_pair, group_count, target=target, margin=margin)
    difference = scores[winner_index] - scores[loser_index]
    lead = difference if margin is None else difference - margin
    cost = _logistic_loss(lead)
    if target is not None or label_smoothing:
        # -log sigmoid(-d) = -log sigmoid(d) + d, so the cross-entropy is the certain label's cost plus (1 - t) d.
        certain = torch.ones_like(lead) if target is None else target
        cost = cost + (1.0 - certain + label_smoothing * (2.0 * certain - 1.0)) * lead
    loss = (share_of_pair(group_of_pair, group_count, cost.dtype, group_weight=group_weight) * cost).sum()
    decided = None if target is None else target != UNDECIDED
    return loss, group_metrics(difference, group_of_pair, group_count, selected=decided)


def centering_penalty(scores: Tensor, group_of_score: Tensor, group_count: int) -> Tensor:
    """Mean over groups of (2 * mean score of the group)^2, which keeps scores around 0.

    A preference loss sees differences only, so the level of the scores drifts. For two responses this is
    (chosen + rejected)^2 (Eisenstein et al. 2023, arXiv:2312.09244); for K it pulls at the group's level alone, and at
    no difference within it.

    Args:
        scores: (S,) scores.
        group_of_score: (S,) int64, group of each score; the scores of a group stay in one call.
        group_count: groups of the whole minibatch, as in `ranked_pairs_loss`.

    Raises:
        ValueError: if group_count is below 1 or the shapes differ.
    """
    require_same_vector(scores=scores, group_of_score=group_of_score)
    weight = share_of_pair(group_of_score, group_count, scores.dtype) * group_count
    means = scores.new_zeros(group_count).index_add(0, group_of_score, weight * scores)
    return (2.0 * means).square().sum() / group_count


def group_metrics(
    difference: Tensor, group_of_pair: Tensor, group_count: int, *, selected: Tensor | None = None
) -> dict[str, Tensor]:
    """`accuracy` and `margin` of winner minus loser: means over the selected pairs of a group, then over groups."""
    if selected is not None:
        difference, group_of_pair = difference[selected], group_of_pair[selected]
    share = share_of_pair(group_of_pair, group_count, difference.dtype)
    return {name: (share * metric).sum() for name, metric in _pair_metrics(difference).items()}


def share_of_pair(
    group_of_pair: Tensor, group_count: int, dtype: torch.dtype, *, group_weight: Tensor | None = None
) -> Tensor:
    """(Q,) weight of each pair in a mean over the pairs of a group, then over `group_count` groups."""
    if group_count < 1:
        raise ValueError(f"group_count is {group_count}; it must be >= 1: pass the number of groups in the minibatch")
    ones = torch.ones(group_of_pair.shape, dtype=dtype, device=group_of_pair.device)
    pairs_of_group = ones.new_zeros(group_count).index_add(0, group_of_pair, ones)
    share = 1.0 / (pairs_of_group[group_of_pair] * group_count)
    return share if group_weight is None else share * group_weight[group_of_pair]


def require_pairs(
    winner_index: Tensor, loser_index: Tensor, group_of_pair: Tensor, group_count: int, **per_pair: Tensor | None
) -> None:
    """Refuse a group count below 1, and indices or numbers of pairs that are not (Q,).

    Raises:
        ValueError: naming the two tensors that differ.
    """
    if group_count < 1:
        raise ValueError(f"group_count is {group_count}; it must be >= 1: pass the number of groups in the minibatch")
    require_same_vector(winner_index=winner_index, loser_index=loser_index)
    require_same_vector(winner_index=winner_index, group_of_pair=group_of_pair)
    for name, values in per_pair.items():
        if values is not None:
            require_same_vector(winner_index=winner_index, **{name: values})


def require_same_vector(**tensors: Tensor) -> None:
    """Refuse two tensors that are not 1-D or not of equal length.

    Raises:
        ValueError: naming both.
    """
    (name, first), (other_name, other) = tensors.items()
    if first.dim() != 1 or first.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(first.shape)} and {other_name} {tuple(other.shape)}; both must be 1-D and of "
            "equal length: flatten them"
        )


def _logistic_loss(difference: Tensor) -> Tensor:
    # logsigmoid is min(x, 0) - log1p(exp(-|x|)): no overflow, and no loss of digits, at either end.
    return -functional.logsigmoid(difference)


def _pair_metrics(difference: Tensor) -> dict[str, Tensor]:
    difference = difference.detach()
    return {"accuracy": 0.5 * (1.0 + torch.sign(difference)), "margin": difference}
