"""L2-SP, EWC and the empirical Fisher information: values and gradients by hand, and autograd's."""

import pytest
import torch

from rlhf.algorithms.weight_anchors import elastic_weights, fisher_sums, l2_sp

WEIGHT, START = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.5, 1.0, 0.5])
FISHER = torch.tensor([4.0, 0.5, 9.0])


def test_l2_sp_is_half_the_weighted_squared_distance() -> None:
    value, gradient = l2_sp(WEIGHT, START, coefficient=0.2)
    assert value.item() == pytest.approx(0.1 * (0.25 + 9.0))
    assert gradient.tolist() == pytest.approx([0.1, -0.6, 0.0])


def test_ewc_weighs_each_weight_by_its_importance() -> None:
    value, gradient = elastic_weights(WEIGHT, START, FISHER, coefficient=3.0)
    assert value.item() == pytest.approx(1.5 * (4.0 * 0.25 + 0.5 * 9.0))
    assert gradient.tolist() == pytest.approx([6.0, -4.5, 0.0])


def test_gradients_are_those_of_autograd() -> None:
    weight = WEIGHT.clone().requires_grad_()
    (0.5 * 0.7 * (FISHER * (weight - START).square()).sum()).backward()
    assert torch.allclose(elastic_weights(weight, START, FISHER, coefficient=0.7)[1], weight.grad)  # pyright: ignore[reportArgumentType]
    ones = elastic_weights(weight, START, torch.ones(3), coefficient=0.7)
    for one, other in zip(l2_sp(weight, START, coefficient=0.7), ones, strict=True):
        assert torch.equal(one, other)


def test_a_bfloat16_weight_has_a_float32_penalty() -> None:
    value, gradient = l2_sp(WEIGHT.bfloat16(), START.bfloat16(), coefficient=1.0)
    assert value.dtype == gradient.dtype == torch.float32


def test_fisher_sums_squares_of_each_example_not_the_square_of_the_sum() -> None:
    gradients = [[torch.tensor([1.0, -2.0]), torch.tensor([[3.0]])], [torch.tensor([-1.0, 1.0]), torch.tensor([[0.5]])]]
    (first, second), count = fisher_sums(gradients, [torch.zeros(2), torch.zeros(1, 1)])
    assert (first.tolist(), second.tolist(), count) == ([2.0, 5.0], [[9.25]], 2)
