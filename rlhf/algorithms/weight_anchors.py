"""Penalties that hold weights near where they started, with their gradients, one tensor at a time.

Both are sums over elements, so the penalty of a model is the sum over its tensors, and its gradient needs no backward
pass.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def l2_sp(weight: Tensor, start: Tensor, *, coefficient: float) -> tuple[Tensor, Tensor]:
    """a/2 sum_i (w_i - w0_i)^2, and its gradient a (w - w0) (Li et al. 2018; no layer here is new).

    Args:
        weight: Any shape.
        start: The same shape; where the weight was before training.
        coefficient: a, nats per squared unit of weight.

    Returns:
        The penalty, a float32 scalar in nats, and its gradient, float32 in the shape of `weight`.
    """
    difference = weight.detach().float() - start.float()
    gradient = coefficient * difference
    return 0.5 * (gradient * difference).sum(), gradient


def elastic_weights(weight: Tensor, start: Tensor, fisher: Tensor, *, coefficient: float) -> tuple[Tensor, Tensor]:
    """l/2 sum_i F_i (w_i - w0_i)^2, and its gradient l F (w - w0): EWC (Kirkpatrick et al. 2017, equation 3).

    Args:
        weight: Any shape.
        start: The same shape; the weight that the old data were learned with.
        fisher: The same shape; diagonal of the Fisher information of the old data at `start` (see `fisher_sums`).
        coefficient: l, how much the old data count.

    Returns:
        See `l2_sp`.
    """
    difference = weight.detach().float() - start.float()
    gradient = coefficient * fisher * difference
    return 0.5 * (gradient * difference).sum(), gradient


def fisher_sums(gradients: Iterable[Sequence[Tensor]], weights: Sequence[Tensor]) -> tuple[list[Tensor], int]:
    """Sum over examples of squared gradients; divided by their number it is the diagonal of the empirical Fisher.

    F_i = 1/N sum_n (d log p(y_n | x_n) / d w_i)^2, of the data's own answers y_n. The sum comes undivided, so that
    those of several ranks add up. Kirkpatrick et al. 2017 need the diagonal at the old weights; Martens 2020, section
    11, tells how the empirical Fisher differs from the true one, whose y_n the model draws.

    Args:
        gradients: For each example, of its whole log-likelihood, one tensor for each weight.
        weights: What the gradients are by; only shapes are read.

    Returns:
        Sums in float32, one for each weight, and N.
    """
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    count = 0
    for of_example in gradients:
        for total, gradient in zip(sums, of_example, strict=True):
            total.add_(gradient.float().square())
        count += 1
    return sums, count
