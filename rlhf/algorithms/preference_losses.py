"""Losses that teach a reward model which response was preferred.

Owns the Bradley-Terry loss on pairs, and its K-wise form on rankings. How rankings become pairs of indices is
`reward.preferences`; scores are one number per response.
"""

import torch
from torch import Tensor
from torch.nn import functional


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
    _require_same_vector(chosen=chosen, rejected=rejected)
    if margin is not None:
        _require_same_vector(chosen=chosen, margin=margin)
    if chosen.numel() == 0:
        raise ValueError("chosen has no element; the mean over pairs needs at least one pair: skip empty batches")
    difference = chosen - rejected
    loss = _logistic_loss(difference if margin is None else difference - margin).mean()
    return loss, {name: metric.mean() for name, metric in _pair_metrics(difference).items()}


def ranked_pairs_loss(
    scores: Tensor, winner_index: Tensor, loser_index: Tensor, group_of_pair: Tensor, group_count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """K-wise ranking loss: mean of -log sigmoid(winner - loser) over the pairs of a group, then over groups.

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 1, where a group is the K responses to one prompt with its K-choose-2
    pairs. All pairs of a group share one forward pass over its K responses, so each response meets the optimizer once
    however many pairs it is in. With ties a group has fewer pairs, and the mean is over those. For K = 2 it is
    `pairwise_logistic_loss`.

    Args:
        scores: (S,) scores of all responses of all groups.
        winner_index: (Q,) int64, index into scores of each pair's better response.
        loser_index: (Q,) int64, index into scores of each pair's worse response.
        group_of_pair: (Q,) int64, group of each pair, in 0 .. group_count - 1; the pairs of a group stay in one call.
        group_count: groups with at least one pair in the whole minibatch. A call on part of them gives its share, so
            that the shares of micro-batches add up to the minibatch's loss.

    Returns:
        The loss, and metrics weighted like it (they add up the same way): `accuracy`, where equal scores count one
        half, and `margin`, the winner's score minus the loser's.

    Raises:
        ValueError: if group_count is below 1, or the shapes do not fit.
    """
    if group_count < 1:
        raise ValueError(f"group_count is {group_count}; it must be >= 1: pass the number of groups in the minibatch")
    _require_same_vector(winner_index=winner_index, loser_index=loser_index)
    _require_same_vector(winner_index=winner_index, group_of_pair=group_of_pair)
    difference = scores[winner_index] - scores[loser_index]
    ones = torch.ones_like(difference)
    pairs_of_group = ones.new_zeros(group_count).index_add(0, group_of_pair, ones)
    weights = 1.0 / (pairs_of_group[group_of_pair] * group_count)
    loss = (weights * _logistic_loss(difference)).sum()
    return loss, {name: (weights * metric).sum() for name, metric in _pair_metrics(difference).items()}


def _logistic_loss(difference: Tensor) -> Tensor:
    # logsigmoid is min(x, 0) - log1p(exp(-|x|)): no overflow, and no loss of digits, at either end.
    return -functional.logsigmoid(difference)


def _pair_metrics(difference: Tensor) -> dict[str, Tensor]:
    difference = difference.detach()
    return {"accuracy": 0.5 * (1.0 + torch.sign(difference)), "margin": difference}


def _require_same_vector(**tensors: Tensor) -> None:
    (name, first), (other_name, other) = tensors.items()
    if first.dim() != 1 or first.shape != other.shape:
        raise ValueError(
            f"{name} has shape {tuple(first.shape)} and {other_name} {tuple(other.shape)}; both must be 1-D and of "
            "equal length: flatten them"
        )
