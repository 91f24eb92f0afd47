"""Metrics of one optimizer step, gathered over micro-batches, ranks and minibatches, on the device until the end.

Owns how each is put together: those named `_max` by their maximum, all others by their sum (they share a denominator)
or, over minibatches, their mean.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf.runtime.distributed import Ranks

Sums = dict[str, Tensor]
"""Scalars by metric."""


def add_metrics(totals: Sums, metrics: Sums) -> None:
    """Adds token means that share their minibatch's denominator; keeps the maximum of `_max` metrics."""
    for name, value in metrics.items():
        if name not in totals:
            totals[name] = value
        else:
            totals[name] = torch.maximum(totals[name], value) if _is_maximum(name) else totals[name] + value


def over_ranks(totals: Sums, ranks: Ranks) -> Sums:
    """What `add_metrics` has gathered on each rank, of all of them."""
    if ranks.is_alone:
        return totals
    sums = [name for name in totals if not _is_maximum(name)]
    maxima = [name for name in totals if _is_maximum(name)]
    added, greatest = (torch.stack([totals[name].float() for name in names]) for names in (sums, maxima))
    ranks.add_up(added)
    ranks.maximum(greatest)
    combined = dict(zip([*sums, *maxima], [*added, *greatest], strict=True))
    return {name: combined[name] for name in totals}


def to_floats(tensors: Sums) -> dict[str, float]:
    """All scalars in one transfer."""
    stacked = torch.stack([value.float() for value in tensors.values()]).tolist()
    return dict(zip(tensors, stacked, strict=True))


def average(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One row of metrics for several minibatches."""

    def combine(name: str) -> float:
        column = [row[name] for row in history]
        return max(column) if _is_maximum(name) else sum(column) / len(column)

    return {name: combine(name) for name in history[0]}


def _is_maximum(name: str) -> bool:
    return name.endswith("_max")
