"""The pull of weights towards where they stood before training, added to the gradient of every step.

Owns the start and the importance of each weight. The formulas are `rlhf.algorithms.weight_anchors`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.causal import CausalPolicy
from policies.sequences import pad_sequences
from rlhf.algorithms.weight_anchors import elastic_weights, fisher_sums, l2_sp
from rlhf.conversations import Example
from rlhf.runtime.distributed import ALONE, Ranks


class WeightAnchor:
    """L2-SP, or EWC where importances are given.

    It depends on weights alone: with several ranks, whose weights are the same, each adds it to the gradient of all.

    Args:
        parameters: What trains, as it stands before the first step.
        coefficient: See the formulas.
        importances: Diagonal of the Fisher information, one tensor for each parameter; None counts all alike.
    """

    def __init__(
        self, parameters: Sequence[Parameter], *, coefficient: float, importances: Sequence[Tensor] | None = None
    ) -> None:
        self._parameters, self._coefficient, self._importances = parameters, coefficient, importances
        self._starts = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def add(self) -> float:
        """Adds the penalty's gradient to those of the parameters; returns the penalty, nats."""
        total = torch.zeros((), device=self._starts[0].device)
        for index, parameter in enumerate(self._parameters):
            value, gradient = self._of(index, parameter)
            total += value
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        return total.item()

    def _of(self, index: int, parameter: Tensor) -> tuple[Tensor, Tensor]:
        start, coefficient = self._starts[index], self._coefficient
        if self._importances is None:
            return l2_sp(parameter, start, coefficient=coefficient)
        return elastic_weights(parameter, start, self._importances[index], coefficient=coefficient)


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
    """Of the log-likelihood of each example's learned tokens."""
    backbone = policy.backbone
    for example in examples:
        given, learned = example.token_ids[~example.loss_mask], example.token_ids[example.loss_mask]
        batch = pad_sequences([given], [learned], pad_id=backbone.pad_id, device=backbone.device)
        yield torch.autograd.grad(policy.logprobs(batch).logprobs.sum(), parameters, materialize_grads=True)
