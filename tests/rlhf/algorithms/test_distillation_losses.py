"""Distillation losses against values worked by hand, and their gradients."""

import math

import pytest
import torch
from torch import nn

from rlhf.algorithms.distillation_losses import score_regression_loss, soft_target_loss


def test_soft_targets_are_the_squared_temperature_times_the_divergence() -> None:
    # At T = 2 the logits (2 log 3, 0) give (3/4, 1/4), and (0, 0) gives (1/2, 1/2).
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_target_loss(teacher, student, temperature=2.0).tolist() == pytest.approx([4 * divergence])


def test_the_divergence_goes_from_teacher_to_student() -> None:
    one, other = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 0.5]])
    forward, backward = (soft_target_loss(*pair, temperature=1.0).item() for pair in ((one, other), (other, one)))
    expected = nn.functional.kl_div(other.log_softmax(-1), one.softmax(-1), reduction="sum").item()
    assert forward == pytest.approx(expected)
    assert backward != pytest.approx(expected, rel=0.01)


def test_the_gradient_is_t_times_the_difference_of_probabilities() -> None:
    teacher = torch.tensor([[1.0, -1.0]], requires_grad=True)
    student = torch.tensor([[0.5, 0.0]], requires_grad=True)
    soft_target_loss(teacher, student, temperature=4.0).sum().backward()
    expected = 4.0 * ((student / 4).softmax(-1) - (teacher / 4).softmax(-1))
    assert torch.allclose(student.grad, expected.detach())  # pyright: ignore[reportArgumentType]
    assert teacher.grad is None


def test_scores_are_regressed_on_the_teachers() -> None:
    teacher = torch.tensor([1.0, -2.0], requires_grad=True)
    found = score_regression_loss(teacher, torch.tensor([0.5, 1.0]))
    assert found.tolist() == [0.25, 9.0]
    assert not found.requires_grad
