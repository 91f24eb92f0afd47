"""Soft targets over many tokens in bounded memory: of both models, the logits of one chunk exist at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.algorithms.distillation_losses import soft_target_loss

Layer = Callable[[Tensor], Tensor]


def chunked_soft_target_loss(
    teacher_states: Tensor,
    student_states: Tensor,
    teacher_output: Layer,
    student_output: Layer,
    *,
    temperature: float,
    chunk_tokens: int,
) -> Tensor:
    """`soft_target_loss` of (N, D) states, with the logits of at most `chunk_tokens` tokens at the same time.

    With gradients, the logits of a chunk are computed again in the backward pass instead of being kept.

    Returns:
        (N,).
    """

    def evaluate(teacher: Tensor, student: Tensor) -> Tensor:
        with torch.no_grad():
            targets = teacher_output(teacher)
        return soft_target_loss(targets, student_output(student), temperature=temperature)

    pairs = zip(teacher_states.detach().split(chunk_tokens), student_states.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled() and len(student_states) > chunk_tokens:
        parts = [checkpoint(evaluate, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    else:
        parts = [evaluate(*pair) for pair in pairs]
    return torch.cat(parts)
