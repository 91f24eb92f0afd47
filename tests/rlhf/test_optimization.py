"""AdamW groups, schedules, clipping and the stop on a non-finite loss, against values worked by hand."""

import math
import pickle

import pytest
import torch
from torch import nn

from rlhf.config import OptimizerConfig
from rlhf.optimization import (
    NonFiniteLossError,
    build_optimizer,
    build_schedule,
    clip_gradients,
    first_non_finite,
    optimizer_step,
    set_learning_rate,
)


def constant(**fields: float) -> OptimizerConfig:
    return OptimizerConfig.model_validate({"learning_rate": 0.1, "schedule": "constant", **fields})


def test_matrices_decay_and_vectors_do_not() -> None:
    layer = nn.Linear(2, 3)
    optimizer = build_optimizer(layer.named_parameters(), constant(weight_decay=0.5))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(layer.weight): 0.5, id(layer.bias): 0.0}


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 3)
    layer.weight.requires_grad_(False)
    optimizer = build_optimizer(layer.named_parameters(), constant())
    assert [p is layer.bias for group in optimizer.param_groups for p in group["params"]] == [True]


def test_a_fully_frozen_model_is_refused() -> None:
    layer = nn.Linear(2, 3).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing would train"):
        build_optimizer(layer.named_parameters(), constant())


def test_first_step_moves_by_learning_rate_times_sign_and_decay() -> None:
    # AdamW's first step: w (1 - lr wd) - lr g / (|g| + eps), here 2 (1 - 0.1 * 0.5) - 0.1 = 1.8 and -1 * 0.95 + 0.1
    # = -0.85.
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    optimizer = build_optimizer([("weight", weight)], constant(weight_decay=0.5, max_grad_norm=100.0))
    weight.grad = torch.tensor([[3.0, -7.0]])
    optimizer_step(optimizer, constant(max_grad_norm=100.0), lambda _: 1.0, [("weight", weight)], step=0, loss=1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.8, -0.85]]))
    assert weight.grad is None


def test_warm_up_rises_from_the_first_step_and_ends_at_the_peak() -> None:
    factor = build_schedule(OptimizerConfig(warmup_fraction=0.4, schedule="constant"), total_steps=10)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_decay_reaches_0_after_the_last_step() -> None:
    factor = build_schedule(OptimizerConfig(warmup_fraction=0.2, schedule="linear"), total_steps=5)
    assert [factor(step) for step in range(6)] == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.25, 0.0])


def test_cosine_decay_ends_at_a_tenth_of_the_peak() -> None:
    factor = build_schedule(OptimizerConfig(schedule="cosine"), total_steps=3)
    expected = [1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25, 0.1, 0.1]
    assert [factor(step) for step in range(5)] == pytest.approx(expected)


def test_warm_up_of_seven_percent_of_a_hundred_is_seven_steps() -> None:
    assert build_schedule(OptimizerConfig(warmup_fraction=0.07, schedule="constant"), total_steps=100)(0) == 1 / 7


def test_learning_rate_is_the_factor_of_each_groups_peak() -> None:
    optimizer = build_optimizer(nn.Linear(2, 3).named_parameters(), constant())
    set_learning_rate(optimizer, 0.5)
    assert set_learning_rate(optimizer, 0.25) == pytest.approx(0.025)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.025])


def test_clipping_scales_the_global_norm_and_reports_the_one_before() -> None:
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1, 1))
    optimizer = build_optimizer([("first", first), ("second", second)], constant())
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([[4.0]])
    assert clip_gradients(optimizer, 0.5) == pytest.approx(5.0)
    torch.testing.assert_close(torch.cat([first.grad, second.grad[0]]), torch.tensor([0.3, 0.4]), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan)])
def test_a_non_finite_loss_or_gradient_raises_before_the_weights_change(loss: float, gradient: float) -> None:
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = build_optimizer([("weight", weight)], constant())
    weight.grad = torch.tensor([[gradient]])
    with pytest.raises(NonFiniteLossError, match="at step 7; training stopped") as error:
        optimizer_step(optimizer, constant(), lambda _: 1.0, [("weight", weight)], step=7, loss=loss)
    assert weight.item() == 2.0
    assert not optimizer.state
    assert error.value.quantity == ("grad_norm" if math.isfinite(loss) else "loss")
    assert error.value.tensor == ("gradient of weight" if math.isfinite(loss) else None)


def layers(*gradients: float) -> list[tuple[str, nn.Parameter]]:
    """Parameters in the model's order, each with two weights of 1 and one such gradient."""
    named = [(f"layer.{index}", nn.Parameter(torch.ones(2))) for index in range(len(gradients))]
    for (_, parameter), gradient in zip(named, gradients, strict=True):
        parameter.grad = torch.tensor([0.5, gradient])
    return named


def test_the_first_bad_gradient_is_that_nearest_to_the_loss() -> None:
    # It came in at layer 1 and went back through layer 0.
    assert first_non_finite(layers(math.nan, math.inf, 2.0)) == "gradient of layer.1"
    assert first_non_finite(layers(1.0, 2.0)) is None


def test_gradients_too_large_to_square_are_named_after_those_that_are_no_numbers() -> None:
    assert first_non_finite(layers(1e25, 2.0, 1.0)) == "norm of the gradient of layer.0"
    assert first_non_finite(layers(math.nan, 1e25)) == "gradient of layer.0"


def test_a_bad_weight_comes_before_every_gradient_and_the_earliest_first() -> None:
    named = layers(1.0, 2.0, math.nan)
    with torch.no_grad():
        named[1][1][0], named[2][1][0] = -math.inf, math.nan
    assert first_non_finite(named) == "weight layer.1"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_named_and_spoils_no_other(bad: float) -> None:
    named = layers(1.0, bad, 2.0)
    optimizer = build_optimizer(named, constant())
    with pytest.raises(NonFiniteLossError, match=r"\(first tensor that is not finite: gradient of layer\.1\)") as error:
        optimizer_step(optimizer, constant(), lambda _: 1.0, named, step=0, loss=1.0)
    assert (error.value.quantity, error.value.tensor) == ("grad_norm", "gradient of layer.1")
    gradients = [parameter.grad for _, parameter in named]
    assert gradients[0] is not None
    torch.testing.assert_close(gradients[0], torch.tensor([0.5, 1.0]))


def test_tensors_are_not_searched_while_everything_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "isfinite", None)
    named = layers(1.0, 2.0)
    optimizer_step(build_optimizer(named, constant()), constant(), lambda _: 1.0, named, step=0, loss=1.0)


def test_the_error_survives_a_process_boundary() -> None:
    original = NonFiniteLossError("loss", math.inf, 3, "weight a").of("policy")
    error = pickle.loads(pickle.dumps(original))
    assert (error.quantity, error.value, error.step, error.tensor) == ("policy loss", math.inf, 3, "weight a")
    assert str(error) == str(original)
