"""Comparisons -> the gradient of a reward model, and what a step tells of it.

Owns which loss a configuration means, which labels it needs, precision, and micro-batches. The formulas are
`rlhf.algorithms.preference_losses` and `listwise_losses`, the loop is `rlhf.trainers.reward`.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from reward.group_scoring import score_groups
from reward.model import RewardModel
from reward.preference_batch import EncodedComparison, PreferenceBatch, collate, group_comparisons
from rlhf.algorithms.listwise_losses import plackett_luce_loss
from rlhf.algorithms.preference_losses import centering_penalty, ranked_pairs_loss
from rlhf.compute_precision import reduced_precision, resolve_compute_dtype
from rlhf.config import PairwiseLogisticLoss, PreferenceLoss, RewardConfig
from rlhf.row_shares import balance
from rlhf.runtime.distributed import ALONE, Ranks

_FORWARDS_PER_MICRO_BATCH = 4
"""For models that cannot share prefixes: responses of similar length share a forward pass; so many passes, padded each
for itself, share a backward pass."""


class RewardObjective:
    """The loss of a reward model on the comparisons of a step.

    Args:
        model: The model to train.
        config: Reads `loss`, `micro_batch_tokens` and `compute_dtype`.
        train: All training comparisons; their mean weight counts as 1.
        ranks: Those that share the comparisons of a step.

    Raises:
        ValueError: the labels are not what the loss needs.
    """

    def __init__(
        self,
        model: RewardModel,
        config: RewardConfig,
        train: Sequence[EncodedComparison],
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        require_labels(config.loss, train)
        self._ranks = ranks
        self._model, self._loss, self._token_budget = model, config.loss, config.micro_batch_tokens
        self._compute_dtype = resolve_compute_dtype(config.compute_dtype, model.device)
        self._mean_weight = math.fsum(encoded.comparison.weight for encoded in train) / len(train)

    def backward(self, comparisons: Sequence[EncodedComparison]) -> dict[str, float]:
        """Adds the gradient of the mean loss over the comparisons to that of the weights: this rank's share of it.

        Each of the K responses to a prompt is read once, however many of the K-choose-2 pairs it is in, and so is the
        prompt itself where the model can share it.

        Returns:
            The metrics of the group `rm`: loss, accuracy, margin, mean and standard deviation of the scores.
        """
        totals: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self._model.device))
        scored: list[Tensor] = []
        budget, shares = self._token_budget, self._model.shares_prefixes
        places = balance([comparison.token_count for comparison in comparisons], self._ranks.count)[self._ranks.index]
        # A rank without a comparison computes one that does not count, to have the same metrics to add up.
        weight = 1.0 if places else 0.0
        own = [comparisons[place] for place in places] or comparisons[:1]
        for part in group_comparisons(own, budget, shares_prefixes=shares):
            scores = self._scores(part)
            batch = collate(part, self._model.device, with_ties=_reads_ties(self._loss))
            loss, metrics = preference_loss(
                self._loss, scores, batch, group_count=len(comparisons), mean_weight=self._mean_weight
            )
            (loss if places else weight * loss).backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals[name] + weight * value
            scored.append(scores.detach())
        sums = torch.stack(list(totals.values()))
        self._ranks.add_up(sums)
        totals |= dict(zip(totals, sums, strict=True)) | self._spread(torch.cat(scored if places else [scored[0][:0]]))
        numbers = torch.stack(list(totals.values())).tolist()
        return {f"rm/{name}": number for name, number in zip(totals, numbers, strict=True)}

    def _spread(self, scores: Tensor) -> dict[str, Tensor]:
        """Mean and standard deviation of the scores on all ranks."""
        if self._ranks.is_alone:
            return {"score_mean": scores.mean(), "score_std": scores.std(correction=0)}
        values = scores.double()
        count, total, squares = self._ranks.total(len(values), values.sum().item(), values.square().sum().item())
        mean = total / count
        std = math.sqrt(max(0.0, squares / count - mean**2))
        return {"score_mean": scores.new_tensor(mean), "score_std": scores.new_tensor(std)}

    def _scores(self, part: Sequence[EncodedComparison]) -> Tensor:
        groups = [comparison.sequences for comparison in part]
        forward_tokens = max(1, self._token_budget // _FORWARDS_PER_MICRO_BATCH)
        with reduced_precision(self._model.device, self._compute_dtype):
            return score_groups(self._model, groups, token_budget=forward_tokens)


def preference_loss(
    config: PreferenceLoss, scores: Tensor, batch: PreferenceBatch, *, group_count: int, mean_weight: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss that a configuration means: a micro-batch's share of that of `group_count` comparisons.

    Args:
        config: Which loss.
        scores: (S,) raw scores.
        batch: The comparisons; with ties if the loss reads them.
        group_count: Comparisons of the whole step.
        mean_weight: Weight that counts as 1.

    Returns:
        The loss, and its metrics (`accuracy`, `margin`, and `centering` where that is asked for).
    """
    indices = (scores, batch.winner_index, batch.loser_index, batch.group_of_pair, group_count)
    weight = batch.group_weight / mean_weight
    if isinstance(config, PairwiseLogisticLoss):
        loss, metrics = ranked_pairs_loss(
            *indices,
            group_weight=weight,
            target=batch.target,
            margin=config.margin_coefficient * batch.margin if config.margin_coefficient else None,
            label_smoothing=config.label_smoothing,
        )
    else:
        loss, metrics = plackett_luce_loss(*indices, group_weight=weight)
    if config.centering_coefficient:
        penalty = centering_penalty(scores, batch.group_of_sequence, group_count)
        loss, metrics = loss + config.centering_coefficient * penalty, metrics | {"centering": penalty.detach()}
    return loss, metrics


def require_labels(config: PreferenceLoss, train: Sequence[EncodedComparison]) -> None:
    """Refuses labels that the loss would not read as they are meant.

    Raises:
        ValueError: a margin is missing or contradicts the ranking, a listwise loss meets an uncertain label, or no
            comparison has a weight.
    """
    if not any(encoded.comparison.weight for encoded in train):
        raise ValueError("every training comparison has weight 0, so there is nothing to learn; correct the weights")
    for encoded in train:
        if isinstance(config, PairwiseLogisticLoss):
            _require_margins(config.margin_coefficient, encoded)
        elif encoded.comparison.win_probability != 1:
            raise ValueError(
                f"{encoded.comparison.source}: win_probability={encoded.comparison.win_probability}, but "
                "loss.kind=plackett_luce reads certain rankings only; set loss.kind=pairwise_logistic, or remove the "
                "field"
            )


def _require_margins(coefficient: float, encoded: EncodedComparison) -> None:
    if not coefficient or (encoded.margins >= 0).all():
        return
    place, lowest = encoded.comparison.source, float(encoded.margins.min())
    if math.isnan(lowest):
        raise ValueError(
            f"{place}: loss.margin_coefficient={coefficient} needs to know how much better a response is; add `margin` "
            "to pairs, `strengths` or scored responses to rankings, or set loss.margin_coefficient=0"
        )
    raise ValueError(
        f"{place}: a response is ranked above one that is stronger by {-lowest:g}, and loss.margin_coefficient="
        f"{coefficient} would teach the opposite; correct the row, or set loss.margin_coefficient=0"
    )


def _reads_ties(config: PreferenceLoss) -> bool:
    return isinstance(config, PairwiseLogisticLoss) and config.ties == "half"
