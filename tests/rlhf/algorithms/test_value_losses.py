"""The clipped value loss and explained variance, against values worked by hand and plain loops."""

import math
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.value_losses import clipped_value_loss, explained_variance

LENGTHS = torch.tensor([5, 1, 3])
MASK = torch.arange(5) < LENGTHS.unsqueeze(1)
TOKEN_COUNT = 9


def _random_batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    rollout_values = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    change = 0.3 * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    returns = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    return {"values": rollout_values + change, "rollout_values": rollout_values, "returns": returns}


def _reference_loss(batch: dict[str, Tensor], clip_range: float) -> float:
    total = 0.0
    for row, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            value, rollout_value, target = (
                batch[name][row, t].item() for name in ("values", "rollout_values", "returns")
            )
            clipped = rollout_value + min(max(value - rollout_value, -clip_range), clip_range)
            total += 0.5 * max((value - target) ** 2, (clipped - target) ** 2)
    return total / TOKEN_COUNT


def test_a_value_within_the_range_is_not_counted_as_clipped_for_its_rounding():
    # In float32 0.7 + (0.17 - 0.7) is not 0.17; on one side of it the rounded value has the larger error.
    values, rollout_values = torch.tensor([[0.17, 0.17]]), torch.tensor([[0.7, 0.7]])
    clipped = rollout_values + (values - rollout_values)
    assert not torch.equal(clipped, values)
    for returns in (torch.tensor([[1.0, 1.0]]), torch.tensor([[-1.0, -1.0]])):
        _, metrics = clipped_value_loss(
            values, rollout_values, returns, torch.ones(1, 2, dtype=torch.bool), clip_range=0.6
        )
        assert metrics["clipfrac"].item() == 0.0


def test_loss_gradient_and_metrics_match_values_worked_by_hand():
    values = torch.tensor([[1.0, 2.0, 0.1, 3.0, 50.0]], dtype=torch.float64, requires_grad=True)
    rollout_values = torch.tensor([[0.5, 1.9, 1.0, 1.0, 50.0]], dtype=torch.float64)
    returns = torch.tensor([[2.0, 1.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    loss, metrics = clipped_value_loss(values, rollout_values, returns, mask)
    # Clipped values 0.7, 2.0, 0.8, 1.2. Squared errors, unclipped against clipped:
    #   1 / 1.69, 1 / 1, 0.01 / 0.64, 9 / 1.44: the larger ones are 1.69, 1, 0.64, 9. 0.5 * 12.33 / 4.
    assert loss.item() == pytest.approx(0.5 * 12.33 / 4, rel=1e-12)
    # Tokens 0 and 2 moved towards their return by more than 0.2; token 3 moved away and is pulled back, (3 - 0) / 4.
    gradient = torch.autograd.grad(loss, values)[0]
    assert gradient[0].tolist() == pytest.approx([0.0, 0.25, 0.0, 0.75, 0.0], abs=1e-12)
    expected = {"clipfrac": 0.5, "squared_error": 11.01 / 4, "value_mean": 6.1 / 4, "return_mean": 0.75}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-12)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("clip_range", [0.05, 0.2, 1.0])
def test_loss_agrees_with_a_plain_loop(clip_range: float):
    batch = _random_batch()
    loss, _ = clipped_value_loss(**batch, mask=MASK, clip_range=clip_range)
    assert loss.item() == pytest.approx(_reference_loss(batch, clip_range), rel=1e-12)


def test_on_the_first_pass_it_is_half_the_mean_squared_error():
    batch = _random_batch()
    loss, metrics = clipped_value_loss(batch["values"], batch["values"], batch["returns"], MASK)
    torch.testing.assert_close(loss, 0.5 * (batch["values"] - batch["returns"])[MASK].square().mean())
    assert metrics["clipfrac"].item() == 0.0


@pytest.mark.parametrize("split", [[[0], [1], [2]], [[2, 0], [1]]])
def test_micro_batches_add_up_to_the_minibatch_in_loss_gradient_and_metrics(split: list[list[int]]):
    batch = _random_batch()

    def run(rows: list[int], token_count: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        width = int(LENGTHS[rows].max())
        parameter = torch.linspace(-0.2, 0.3, 5, dtype=torch.float64, requires_grad=True)
        part = {name: tensor[rows, :width] for name, tensor in batch.items()}
        part["values"] = part["values"] + parameter[:width]
        loss, metrics = clipped_value_loss(**part, mask=MASK[rows, :width], token_count=token_count)
        return loss, torch.autograd.grad(loss, parameter)[0], metrics

    whole_loss, whole_gradient, whole_metrics = run([0, 1, 2], None)
    losses, gradients, metrics = zip(*(run(rows, TOKEN_COUNT) for rows in split), strict=True)
    torch.testing.assert_close(torch.stack(losses).sum(), whole_loss)
    torch.testing.assert_close(torch.stack(gradients).sum(dim=0), whole_gradient)
    for name, whole in whole_metrics.items():
        torch.testing.assert_close(torch.stack([part[name] for part in metrics]).sum(), whole)


@pytest.mark.parametrize("junk", [math.nan, math.inf])
def test_padding_reaches_neither_loss_nor_gradient(junk: float):
    batch = _random_batch()
    dirty: dict[str, Any] = {name: torch.where(MASK, tensor, junk) for name, tensor in batch.items()}
    results = []
    for tensors in (batch, dirty):
        tensors["values"].requires_grad_()
        loss, metrics = clipped_value_loss(**tensors, mask=MASK)
        results.append((loss, torch.autograd.grad(loss, tensors["values"])[0], *metrics.values()))
    assert all(torch.equal(clean, padded) for clean, padded in zip(*results, strict=True))


def test_targets_are_constants():
    batch: dict[str, Any] = {name: tensor.requires_grad_() for name, tensor in _random_batch().items()}
    clipped_value_loss(**batch, mask=MASK)[0].backward()
    assert [name for name, tensor in batch.items() if tensor.grad is not None] == ["values"]


def test_gradient_agrees_with_finite_differences():
    batch = _random_batch(2)
    values = batch.pop("values").requires_grad_()
    assert torch.autograd.gradcheck(lambda x: clipped_value_loss(x, **batch, mask=MASK)[0], (values,))


@pytest.mark.parametrize("clip_range", [0.0, -0.2, math.nan])
def test_a_clip_range_that_is_not_positive_is_refused(clip_range: float):
    with pytest.raises(ValueError, match=f"clip_range is {clip_range}"):
        clipped_value_loss(**_random_batch(), mask=MASK, clip_range=clip_range)


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="selects nothing"):
        clipped_value_loss(**_random_batch(), mask=torch.zeros_like(MASK))


def test_explained_variance_matches_values_worked_by_hand():
    values = torch.tensor([[1.0, 2.0], [4.0, math.nan]])
    returns = torch.tensor([[2.0, 2.0], [5.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    # Residuals 1, 0, 1: variance 2/9. Returns 2, 2, 5: variance 2. 1 - (2/9) / 2 = 8/9.
    assert explained_variance(values, returns, mask).item() == pytest.approx(8 / 9)


def test_explained_variance_agrees_with_a_plain_loop():
    batch = _random_batch(4)
    values, returns = batch["values"][MASK].tolist(), batch["returns"][MASK].tolist()
    residuals = [target - value for value, target in zip(values, returns, strict=True)]
    expected = 1 - statistics.pvariance(residuals) / statistics.pvariance(returns)
    assert explained_variance(batch["values"], batch["returns"], MASK).item() == pytest.approx(expected, rel=1e-12)


def test_explained_variance_of_a_perfect_a_constant_and_an_inverted_critic():
    returns = _random_batch()["returns"]
    assert explained_variance(returns, returns, MASK).item() == 1.0
    assert explained_variance(torch.full_like(returns, 7.0), returns, MASK).item() == pytest.approx(0.0, abs=1e-12)
    assert explained_variance(-returns, returns, MASK).item() == pytest.approx(-3.0)


def test_explained_variance_is_nan_where_there_is_nothing_to_explain():
    constant = torch.full((3, 5), 2.0)
    assert explained_variance(_random_batch()["values"].float(), constant, MASK).isnan()
    assert explained_variance(constant, constant, MASK).isnan()
