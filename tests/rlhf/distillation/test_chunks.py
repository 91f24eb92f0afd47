"""Chunks bound the logits that exist, and change nothing else."""

import pytest
import torch
from torch import nn

from rlhf.algorithms.distillation_losses import soft_target_loss
from rlhf.distillation.chunks import chunked_soft_target_loss


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_chunks_change_neither_loss_nor_gradients_and_bound_the_logits(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher_states, student_states = (torch.randn(7, size, generator=generator) for size in (5, 3))
    teacher, student = nn.Linear(5, 11), nn.Linear(3, 11)
    widest: list[int] = []

    def output(states: torch.Tensor) -> torch.Tensor:
        widest.append(len(states))
        return student(states)

    states = student_states.requires_grad_()
    found = chunked_soft_target_loss(
        teacher_states, states, teacher, output, temperature=2.0, chunk_tokens=chunk_tokens
    )
    found.sum().backward()
    received = student.weight.grad.clone()  # pyright: ignore[reportOptionalMemberAccess]
    student.zero_grad()
    whole = soft_target_loss(teacher(teacher_states).detach(), student(student_states), temperature=2.0)
    whole.sum().backward()
    assert torch.allclose(found, whole, atol=1e-6)
    assert torch.allclose(received, student.weight.grad, atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert max(widest) <= chunk_tokens
    assert not [parameter for parameter in teacher.parameters() if parameter.grad is not None]
