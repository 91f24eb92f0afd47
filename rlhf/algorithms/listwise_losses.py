"""The listwise loss of reward models: a ranking as a series of choices.

Owns the Plackett-Luce loss. It takes the same pairs of indices as the pairwise losses of `preference_losses`.
"""

import torch
from torch import Tensor
from torch.nn import functional

from rlhf.algorithms.preference_losses import group_metrics, require_pairs, share_of_pair


def plackett_luce_loss(
    scores: Tensor,
    winner_index: Tensor,
    loser_index: Tensor,
    group_of_pair: Tensor,
    group_count: int,
    *,
    group_weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Listwise loss: mean of -log P(i is chosen before all below it) over the choices of a group, then over groups.

    P(i) = exp(s_i) / (exp(s_i) + sum over j below i of exp(s_j)); without ties the product over i is the Plackett-Luce
    probability of the whole ranking (Plackett 1975; Xia et al. 2008, ListMLE). Tied responses say nothing about each
    other: each of them is a choice of its own against those below the tie, and those in the last group choose nothing.
    The mean over choices, not their sum, keeps the loss of one size for every K; for K = 2 it is the pairwise loss.

    Args:
        scores: (S,) scores of all responses of all groups.
        winner_index: (Q,) int64, index into scores of each pair's better response. A group's pairs must be all of its
            ranking, because those with the same winner make up one choice.
        loser_index: (Q,) int64, of the worse one.
        group_of_pair: (Q,) int64, group of each pair; the pairs of a group stay in one call.
        group_count: groups of the whole minibatch, as in `ranked_pairs_loss`.
        group_weight: (groups of this call,) factor of each group's mean; None is 1.

    Returns:
        The loss, and the metrics of `ranked_pairs_loss`.

    Raises:
        ValueError: if group_count is below 1, or the shapes do not fit.
    """
    require_pairs(winner_index, loser_index, group_of_pair, group_count)
    difference = scores[winner_index] - scores[loser_index]
    chooses = torch.zeros_like(scores, dtype=torch.bool).index_fill(0, winner_index, value=True)
    choice_of_pair = (chooses.cumsum(0) - 1)[winner_index]
    choice_count = int(chooses.sum())
    group_of_choice = group_of_pair.new_zeros(choice_count).index_put((choice_of_pair,), group_of_pair)
    # log(exp(s_i) + sum_j exp(s_j)) - s_i = log(1 + exp(x)), with x the log of the sum of exp(s_j - s_i).
    cost = -functional.logsigmoid(-_grouped_logsumexp(-difference, choice_of_pair, choice_count))
    loss = (share_of_pair(group_of_choice, group_count, cost.dtype, group_weight=group_weight) * cost).sum()
    return loss, group_metrics(difference, group_of_pair, group_count)


def _grouped_logsumexp(values: Tensor, group: Tensor, group_count: int) -> Tensor:
    """(Q,) values and their groups -> (group_count,) log of the sum of exponentials; every group has a member."""
    lowest = values.new_full((group_count,), -torch.inf)
    largest = lowest.scatter_reduce(0, group, values.detach(), reduce="amax")
    sums = values.new_zeros(group_count).index_add(0, group, torch.exp(values - largest[group]))
    return largest + torch.log(sums)
