"""PPO's clipped surrogate and truncated importance weights, against values worked by hand and plain loops."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.policy_losses import clipped_policy_loss, truncated_importance_weights

LENGTHS = torch.tensor([6, 1, 3, 5])
MASK = torch.arange(6) < LENGTHS.unsqueeze(1)
TOKEN_COUNT = 15


def _row(*ratios: float) -> tuple[Tensor, Tensor]:
    """Log-probs of one response with these ratios to a behavior policy of log-probs -1, -2, ..."""
    behavior = -torch.arange(1.0, len(ratios) + 1, dtype=torch.float64).unsqueeze(0)
    logprobs = behavior + torch.tensor([ratios], dtype=torch.float64).log()
    return logprobs.requires_grad_(), behavior


def _random_batch(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    behavior = -4 * torch.rand(4, 6, generator=generator, dtype=torch.float64)
    difference = 0.4 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    advantages = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    weights = 0.5 + torch.rand(4, 6, generator=generator, dtype=torch.float64)
    return {
        "logprobs": behavior + difference,
        "behavior_logprobs": behavior,
        "advantages": advantages,
        "importance_weights": weights,
    }


def _reference_loss(batch: dict[str, Tensor], clip_range: float, dual_clip: float | None) -> float:
    total = 0.0
    for row, length in enumerate(LENGTHS.tolist()):
        for t in range(length):
            ratio = math.exp(batch["logprobs"][row, t].item() - batch["behavior_logprobs"][row, t].item())
            advantage = batch["advantages"][row, t].item()
            objective = min(ratio * advantage, min(max(ratio, 1 - clip_range), 1 + clip_range) * advantage)
            if dual_clip is not None and advantage < 0:
                objective = max(objective, dual_clip * advantage)
            total -= batch["importance_weights"][row, t].item() * objective
    return total / TOKEN_COUNT


def _gradient(loss: Tensor, logprobs: Tensor) -> list[float]:
    return torch.autograd.grad(loss, logprobs)[0][0].tolist()


def test_loss_gradient_and_metrics_match_values_worked_by_hand():
    logprobs, behavior = _row(1.5, 0.5, 1.1, 9.0)
    advantages = torch.tensor([[2.0, -1.0, -3.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    loss, metrics = clipped_policy_loss(logprobs, behavior, advantages, mask)
    # Objectives: min(1.5 * 2, 1.2 * 2) = 2.4; min(0.5 * -1, 0.8 * -1) = -0.8; 1.1 * -3 = -3.3. Mean -1.7 / 3.
    assert loss.item() == pytest.approx(1.7 / 3, rel=1e-12)
    # Tokens 0 and 1 are clipped; token 2: -A r / 3 = 3 * 1.1 / 3.
    assert _gradient(loss, logprobs) == pytest.approx([0.0, 0.0, 1.1, 0.0], abs=1e-12)
    logs = [math.log(1.5), math.log(0.5), math.log(1.1)]
    expected = {
        "approxkl": sum(x * x for x in logs) / 6,
        "approxkl_k3": (0.5 - 0.5 + 0.1 - sum(logs)) / 3,
        "clipfrac": 2 / 3,
        "ratio_mean": 3.1 / 3,
        "ratio_max": 1.5,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-9)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [(1.3, 2.0, 0.0), (0.7, 2.0, -1.4), (1.3, -2.0, 2.6), (0.7, -2.0, 0.0), (1.1, 2.0, -2.2)],
)
def test_the_clip_removes_the_gradient_only_where_the_policy_has_moved_the_way_the_advantage_points(
    ratio: float, advantage: float, gradient: float
):
    logprobs, behavior = _row(ratio)
    advantages = torch.full_like(behavior, advantage)
    loss, metrics = clipped_policy_loss(logprobs, behavior, advantages, torch.tensor([[True]]))
    assert _gradient(loss, logprobs) == pytest.approx([gradient])
    assert metrics["clipfrac"].item() == float(gradient == 0.0)


def test_clip_range_sets_the_width():
    logprobs, behavior = _row(1.5)
    loss, _ = clipped_policy_loss(logprobs, behavior, torch.ones_like(behavior), torch.tensor([[True]]), clip_range=0.4)
    assert loss.item() == pytest.approx(-1.4)


def test_dual_clip_bounds_negative_advantages_only():
    logprobs, behavior = _row(5.0, 2.0, 5.0)
    advantages = torch.tensor([[-2.0, -2.0, 0.5]], dtype=torch.float64)
    mask = torch.ones_like(advantages, dtype=torch.bool)
    # Bound 3: max(5 * -2, 3 * -2) = -6 without gradient; 2 * -2 = -4 stays; positive: clipped at 1.2 * 0.5 = 0.6.
    loss, metrics = clipped_policy_loss(logprobs, behavior, advantages, mask, dual_clip=3.0)
    assert loss.item() == pytest.approx((6 + 4 - 0.6) / 3)
    assert _gradient(loss, logprobs) == pytest.approx([0.0, 4 / 3, 0.0])
    assert metrics["dual_clipfrac"].item() == pytest.approx(1 / 3)


def test_importance_weights_scale_each_token():
    logprobs, behavior = _row(1.5, 0.9)
    advantages = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, 2.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones_like(advantages, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(logprobs, behavior, advantages, mask, importance_weights=weights)
    # -(0.5 * 2.4 + 2 * 0.9 * 3) / 2 = -(1.2 + 5.4) / 2.
    assert loss.item() == pytest.approx(-3.3)
    assert metrics["importance_weight_mean"].item() == pytest.approx(1.25)
    loss.backward()
    assert weights.grad is None


@pytest.mark.parametrize("dual_clip", [None, 1.3])
@pytest.mark.parametrize("clip_range", [0.1, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_loss_agrees_with_a_plain_loop(seed: int, clip_range: float, dual_clip: float | None):
    batch = _random_batch(seed)
    loss, _ = clipped_policy_loss(**batch, mask=MASK, clip_range=clip_range, dual_clip=dual_clip)
    assert loss.item() == pytest.approx(_reference_loss(batch, clip_range, dual_clip), rel=1e-12)


def test_on_the_first_pass_the_ratio_is_one_and_the_loss_is_minus_the_mean_advantage():
    batch = _random_batch()
    logprobs = batch["logprobs"].requires_grad_()
    loss, metrics = clipped_policy_loss(logprobs, logprobs, batch["advantages"], MASK)
    mean_advantage = batch["advantages"][MASK].mean()
    torch.testing.assert_close(loss, -mean_advantage)
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], -batch["advantages"] * MASK / TOKEN_COUNT)
    expected = {"approxkl": 0.0, "approxkl_k3": 0.0, "clipfrac": 0.0, "ratio_mean": 1.0, "ratio_max": 1.0}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[0, 1, 2], [3]], [[2, 0], [3, 1]]])
def test_micro_batches_add_up_to_the_minibatch_in_loss_gradient_and_metrics(split: list[list[int]]):
    batch = _random_batch()

    def run(rows: list[int], token_count: int | None) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        width = int(LENGTHS[rows].max())  # each micro-batch is padded to its own longest response
        parameter = torch.linspace(-0.3, 0.3, 6, dtype=torch.float64, requires_grad=True)  # shared by all rows
        part = {name: tensor[rows, :width] for name, tensor in batch.items()}
        part["logprobs"] = part["logprobs"] + parameter[:width]
        loss, metrics = clipped_policy_loss(**part, mask=MASK[rows, :width], token_count=token_count, dual_clip=1.3)
        return loss, torch.autograd.grad(loss, parameter)[0], metrics

    whole_loss, whole_gradient, whole_metrics = run([0, 1, 2, 3], None)
    losses, gradients, metrics = zip(*(run(rows, TOKEN_COUNT) for rows in split), strict=True)
    torch.testing.assert_close(torch.stack(losses).sum(), whole_loss)
    torch.testing.assert_close(torch.stack(gradients).sum(dim=0), whole_gradient)
    for name, whole in whole_metrics.items():
        parts = torch.stack([part[name] for part in metrics])
        torch.testing.assert_close(parts.max() if name.endswith("_max") else parts.sum(), whole)


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_padding_reaches_neither_loss_nor_gradient_nor_metrics(junk: float):
    batch = _random_batch()
    dirty: dict[str, Any] = {name: torch.where(MASK, tensor, junk) for name, tensor in batch.items()}
    results = []
    for tensors in (batch, dirty):
        tensors["logprobs"].requires_grad_()
        loss, metrics = clipped_policy_loss(**tensors, mask=MASK, dual_clip=2.0)
        results.append((loss, torch.autograd.grad(loss, tensors["logprobs"])[0], *metrics.values()))
    assert all(torch.equal(clean, padded) for clean, padded in zip(*results, strict=True))


def test_an_empty_micro_batch_contributes_nothing_and_a_whole_empty_batch_is_refused():
    batch = _random_batch()
    nothing = torch.zeros_like(MASK)
    loss, metrics = clipped_policy_loss(**batch, mask=nothing, token_count=TOKEN_COUNT)
    assert loss.item() == 0.0
    assert all(value.item() == 0.0 for value in metrics.values())
    with pytest.raises(ValueError, match="selects nothing"):
        clipped_policy_loss(**batch, mask=nothing)


def test_advantages_and_behavior_log_probs_are_constants():
    batch: dict[str, Any] = {name: tensor.requires_grad_() for name, tensor in _random_batch().items()}
    clipped_policy_loss(**batch, mask=MASK)[0].backward()
    assert [name for name, tensor in batch.items() if tensor.grad is not None] == ["logprobs"]


@pytest.mark.parametrize("difference", [100.0, -100.0, 1000.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_ratio_beyond_float32_gives_no_nan(difference: float, advantage: float):
    behavior = torch.full((1, 2), -1.0)
    logprobs = (behavior + torch.tensor([[difference, 0.0]])).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss, metrics = clipped_policy_loss(logprobs, behavior, torch.full((1, 2), advantage), mask)
    gradient = _gradient(loss, logprobs)
    assert loss.isfinite()
    assert all(value.isfinite() for value in metrics.values())
    assert gradient == pytest.approx([0.0, -advantage / 2])


def test_nan_inside_the_mask_is_not_hidden():
    batch = _random_batch()
    batch["logprobs"][0, 0] = math.nan
    assert clipped_policy_loss(**batch, mask=MASK)[0].isnan()


@pytest.mark.parametrize("dual_clip", [None, 1.3])
def test_gradient_agrees_with_finite_differences(dual_clip: float | None):
    batch = _random_batch(5)
    logprobs = batch.pop("logprobs").requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_policy_loss(x, **batch, mask=MASK, dual_clip=dual_clip)[0], (logprobs,)
    )


def test_truncated_weights_match_values_worked_by_hand():
    behavior = torch.tensor([[-1.0, -2.0, -1.0, -3.0]])
    update_start = behavior + torch.tensor([[1.5, 5.0, 0.25, 9.0]]).log()
    mask = torch.tensor([[True, True, True, False]])
    weights = truncated_importance_weights(update_start.requires_grad_(), behavior, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.5, 2.0, 0.25, 0.0]]))
    assert not weights.requires_grad


def test_truncated_weights_survive_overflow_and_padding():
    update_start = torch.tensor([[500.0, math.nan]])
    weights = truncated_importance_weights(update_start, torch.zeros(1, 2), torch.tensor([[True, False]]), cap=3.0)
    assert weights.tolist() == [[3.0, 0.0]]


def test_decoupled_clip_keeps_the_gradient_that_a_clip_around_a_stale_behavior_policy_cuts_off():
    # The token is 1.5 times as likely as when it was sampled, before this update has changed anything.
    update_start, behavior = _row(1.5)
    advantages, mask = torch.ones_like(behavior), torch.tensor([[True]])
    coupled, _ = clipped_policy_loss(update_start, behavior, advantages, mask)
    assert _gradient(coupled, update_start) == [0.0]
    weights = truncated_importance_weights(update_start, behavior, mask, cap=2.0)
    decoupled, _ = clipped_policy_loss(update_start, update_start, advantages, mask, importance_weights=weights)
    assert _gradient(decoupled, update_start) == pytest.approx([-1.5])


@pytest.mark.parametrize(
    "option", [{"clip_range": 0.0}, {"clip_range": math.nan}, {"dual_clip": 1.0}, {"token_count": 0}]
)
def test_options_out_of_range_are_refused_by_name(option: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is {next(iter(option.values()))}"):
        clipped_policy_loss(**_random_batch(), mask=MASK, **option)


@pytest.mark.parametrize("cap", [0.5, math.inf, math.nan])
def test_a_cap_that_would_shrink_weights_of_one_is_refused(cap: float):
    with pytest.raises(ValueError, match=f"cap is {cap}"):
        truncated_importance_weights(torch.zeros(4, 6), torch.zeros(4, 6), MASK, cap=cap)


@pytest.mark.parametrize("name", ["logprobs", "behavior_logprobs", "advantages", "importance_weights"])
def test_a_tensor_that_would_broadcast_is_refused_by_name(name: str):
    batch = _random_batch()
    batch[name] = batch[name][:, :1]
    with pytest.raises(ValueError, match=rf"{name} has shape \(4, 1\)"):
        clipped_policy_loss(**batch, mask=MASK)
