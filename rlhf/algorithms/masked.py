"""Sums, means, variance and whitening over the positions that a mask selects.

Owns the one rule for padding: a value outside the mask, NaN and infinity included, reaches neither the result nor a
gradient. Knows nothing of tokens, rewards or losses beyond their shape.
"""

import torch
from torch import Tensor

Dim = int | tuple[int, ...] | None


def require_mask(mask: Tensor, **tensors: Tensor) -> None:
    """Refuse a mask that is not bool, and tensors that do not have exactly its shape.

    Broadcasting is refused on purpose: (B, 1) against (B, R) has a result, and it is the wrong one.

    Raises:
        ValueError: naming the tensor, what it has and what is needed.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}; only torch.bool is allowed: pass `mask.bool()`")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} but mask has shape {tuple(mask.shape)}; both must be equal: "
                f"reshape or expand {name}"
            )


def zero_outside(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, else 0; positions outside the mask receive a zero gradient, even if they are NaN.

    Multiplying by the mask would not do: NaN * 0 is NaN, in the value and in the gradient.
    """
    return values.masked_fill(~mask, 0)


def masked_sum(values: Tensor, mask: Tensor, dim: Dim = None) -> Tensor:
    """Sum of the selected values: sum_i m_i x_i; 0 where nothing is selected.

    Args:
        values: any shape.
        mask: same shape, bool, True selects.
        dim: dimensions to reduce; None reduces all.

    Raises:
        ValueError: if the mask is not bool or the shapes differ.
    """
    require_mask(mask, values=values)
    return zero_outside(values, mask).sum(dim=dim)


def masked_mean(values: Tensor, mask: Tensor, dim: Dim = None) -> Tensor:
    """Mean of the selected values: sum_i m_i x_i / sum_i m_i.

    Args:
        values: any shape.
        mask: same shape, bool, True selects.
        dim: dimensions to reduce; None reduces all.

    Raises:
        ValueError: if a reduced slice selects nothing, the mask is not bool or the shapes differ.
    """
    require_mask(mask, values=values)
    count = mask.sum(dim=dim)
    if bool((count == 0).any()):
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} selects nothing along dim={dim}; a mean needs at least one True per "
            "slice: drop empty rows before reducing"
        )
    return masked_sum(values, mask, dim) / count


def masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    """Biased variance of the selected values: sum_i m_i (x_i - mean)^2 / sum_i m_i, a scalar.

    Biased (divided by n, not n - 1) as in the original RLHF code (Ziegler et al. 2019), and so that one selected value
    has variance 0 rather than NaN.

    Raises:
        ValueError: if the mask selects nothing, is not bool or the shapes differ.
    """
    mean = masked_mean(values, mask)
    return masked_mean((values - mean).square(), mask)


def whiten(values: Tensor, mask: Tensor, *, subtract_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """Scale the selected values to unit variance: (x - mean) / sqrt(variance + epsilon), and 0 outside the mask.

    Statistics run over all selected positions together, with biased variance, as in the original RLHF code
    (Ziegler et al. 2019). Call it once on the whole step, before any split into minibatches.

    Args:
        values: any shape, float32.
        mask: same shape, bool, True selects.
        subtract_mean: True gives mean 0; False keeps the original mean and changes only the spread around it.
        epsilon: added to the variance; keeps constant values finite.

    Raises:
        ValueError: if the mask selects nothing, is not bool or the shapes differ.
    """
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + epsilon)
    return zero_outside(whitened if subtract_mean else whitened + mean, mask)


def token_mean(values: Tensor, mask: Tensor, token_count: int | Tensor | None = None) -> Tensor:
    """Share of these values in a mean over `token_count` tokens: sum_i m_i x_i / token_count, a scalar.

    With the minibatch's count, the shares of its micro-batches add up to the minibatch's mean, gradients included,
    however the samples are split; averaging the means of unequal micro-batches would not. A micro-batch that selects
    nothing then contributes 0.

    Args:
        values: any shape.
        mask: same shape, bool, True selects.
        token_count: selected tokens of the whole minibatch, over all its micro-batches (and over all ranks, where
            gradients are summed over ranks). None uses this mask's own count, which makes it `masked_mean`. A tensor
            is used as it is, unchecked, so that no device has to be waited for.

    Raises:
        ValueError: if `token_count` is an int below 1, or None with a mask that selects nothing.
    """
    if token_count is None:
        return masked_mean(values, mask)
    if isinstance(token_count, int) and token_count < 1:
        raise ValueError(
            f"token_count is {token_count}; it must be at least 1: pass the number of selected tokens in the minibatch"
        )
    return masked_sum(values, mask) / token_count
