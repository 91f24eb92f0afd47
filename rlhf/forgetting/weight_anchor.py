"""The pull of weights towards where they stood before training, added to the gradient of every step.

Owns the start and the importance of each weight. The formulas are `rlhf.algorithms.weight_anchors`.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.causal import CausalPolicy
from policies.sequences import pad_sequences
from rlhf.algorithms.weight_anchors import elastic_weights, fisher_sums, l2_sp
from rlhf.config.retention import EwcRetention, L2SpRetention, Retention, WeightRetention
from rlhf.conversations import Example
from rlhf.forgetting.replay import drawn
from rlhf.runtime.distributed import ALONE, Ranks


class WeightAnchor:
    """L2-SP, or EWC where importances are given.

    It depends on weights alone: with several ranks, whose weights are the same, each adds it to the gradient of all.

    Args:
        parameters: What trains, as it stands before the first step.
        coefficient: See the formulas.
        importances: Diagonal of the Fisher information, one tensor for each parameter; None counts all alike.
        total: Adds up what the parameters are penalised with, (P,), where each is a part of one that is cut over ranks.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        coefficient: float,
        importances: Sequence[Tensor] | None = None,
        total: Callable[[Tensor], Tensor] = torch.sum,
    ) -> None:
        self._parameters, self._coefficient, self._importances = parameters, coefficient, importances
        self._total = total
        self._starts = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def add(self) -> float:
        """Adds the penalty's gradient to those of the parameters; returns the penalty, nats."""
        penalties: list[Tensor] = []
        for index, parameter in enumerate(self._parameters):
            value, gradient = self._of(index, parameter)
            penalties.append(value)
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        return self._total(torch.stack(penalties)).item()

    def _of(self, index: int, parameter: Tensor) -> tuple[Tensor, Tensor]:
        start, coefficient = self._starts[index], self._coefficient
        if self._importances is None:
            return l2_sp(parameter, start, coefficient=coefficient)
        return elastic_weights(parameter, start, self._importances[index], coefficient=coefficient)


def anchor_weights(
    retention: WeightRetention | Retention,
    policy: CausalPolicy,
    parameters: Sequence[Parameter],
    old: Sequence[Example],
    *,
    seed: int,
    ranks: Ranks = ALONE,
    total: Callable[[Tensor], Tensor] = torch.sum,
) -> WeightAnchor | None:
    """Holds on to the weights as they are now, before the first step; None where `retention` does nothing to them.

    A resumed run does so before it loads its checkpoint, and gets the same anchor.

    Args:
        retention: What is asked for.
        policy: What trains.
        parameters: Its parameters, with gradients let in.
        old: Examples of `retention.data`, for EWC.
        seed: Decides which of them the Fisher information is estimated from.
        ranks: Those that train together.
        total: See `WeightAnchor`.
    """
    if isinstance(retention, L2SpRetention):
        return WeightAnchor(parameters, coefficient=retention.coefficient, total=total)
    if isinstance(retention, EwcRetention):
        fisher = diagonal_fisher(policy, parameters, drawn(old, retention.examples, seed=seed), ranks=ranks)
        return WeightAnchor(parameters, coefficient=retention.coefficient, importances=fisher, total=total)
    return None


def diagonal_fisher(
    policy: CausalPolicy, parameters: Sequence[Parameter], examples: Sequence[Example], *, ranks: Ranks = ALONE
) -> list[Tensor]:
    """Diagonal of the empirical Fisher information of old examples, one float32 tensor for each parameter.

    Args:
        policy: At the weights that the old examples were learned with.
        parameters: What trains of it; gradients are let in.
        examples: Old ones; a pass forward and backward each.
        ranks: Those that share the examples; all must ask.
    """
    own = examples[ranks.index :: ranks.count]
    sums, count = fisher_sums(_gradients(policy, parameters, own), parameters)
    for total in sums:
        ranks.add_up(total)
    (all_examples,) = ranks.total(count)
    return [total.div_(all_examples) for total in sums]


def _gradients(
    policy: CausalPolicy, parameters: Sequence[Parameter], examples: Sequence[Example]
) -> Iterator[Sequence[Tensor]]:
    """Of the log-likelihood of each example's learned tokens, at temperature 1."""
    backbone = policy.backbone
    for example in examples:
        given, learned = example.token_ids[~example.loss_mask], example.token_ids[example.loss_mask]
        batch = pad_sequences([given], [learned], pad_id=backbone.pad_id, device=backbone.device)
        yield torch.autograd.grad(-policy.text_nll(batch).sum(), parameters, materialize_grads=True)
