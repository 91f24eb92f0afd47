"""The gradients of several ranks, added up. Owns how they travel; whose gradients they are is the caller's business."""

from collections.abc import Sequence

import torch
from torch import nn

from rlhf.runtime.distributed import Ranks

_SUMMED_AT_ONCE = 2**24
"""Elements that one collective sums: 64 MiB in float32, the only copy that is made."""


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Replaces each gradient by its sum over ranks, in float32; what no rank has a gradient of keeps having none.

    Args:
        parameters: The same on every rank, in the same order.
        ranks: Those that call.
    """
    if ranks.is_alone:
        return
    reached = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    ranks.add_up(reached)
    for group in _of_bounded_size([p for p, count in zip(parameters, reached.tolist(), strict=True) if count]):
        gradients = [torch.zeros_like(p, dtype=torch.float32) if p.grad is None else p.grad.float() for p in group]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        ranks.add_up(flat)
        for parameter, total in zip(group, flat.split([p.numel() for p in group]), strict=True):
            parameter.grad = total.view(parameter.shape)


def _of_bounded_size(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if not groups or parameter.numel() > room:
            groups.append([])
            room = _SUMMED_AT_ONCE
        groups[-1].append(parameter)
        room -= parameter.numel()
    return groups
