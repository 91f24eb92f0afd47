# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false
"""AdamW on bfloat16 weights: the float32 masters behind them, and what a gradient sums up to."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from rlhf.mixed_precision_adamw import (
    MixedPrecisionAdamW,
    gradients_to_float32,
    join,
    split,
    take_gradients_as_they_come,
)

BF16 = torch.bfloat16
SETTINGS: dict[str, Any] = {"lr": 1e-3, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "fused": True}


def master_of(optimizer: torch.optim.Optimizer, parameter: Parameter) -> Tensor:
    return join(parameter.detach(), optimizer.state[parameter]["residual"])


def halves_of(master: Tensor) -> tuple[Tensor, Tensor]:
    halves = torch.empty(master.shape, dtype=BF16), torch.empty(master.shape, dtype=torch.int16)
    split(master, into=halves)
    return halves


def test_halves_of_numbers_worked_by_hand():
    # bfloat16 numbers beside 1 are 2^-7 apart above and 2^-8 below; float32 ones 2^-23 and 2^-24.
    upper, residual = halves_of(torch.tensor([1.0, 1.0 + 2**-23, 1.0 - 2**-24, 1.0 + 2**-7 - 2**-23]))
    assert upper.tolist() == [1.0, 1.0, 1.0, 1.0 + 2**-7]
    assert residual.tolist() == [0, 1, -1, -1]


def test_any_float32_number_is_its_halves_and_the_upper_one_is_the_nearest():
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(10_000, generator=generator) * 10.0 ** torch.randint(-30, 30, (10_000,), generator=generator)
    upper, residual = halves_of(master)
    assert torch.equal(join(upper, residual), master)
    distance = (upper.double() - master.double()).abs()
    assert torch.equal(distance, (master.to(BF16).double() - master.double()).abs())
    assert residual.unique().numel() > 5000


def test_masters_move_as_torch_moves_float32_weights_and_weights_are_their_nearest():
    generator = torch.Generator().manual_seed(0)
    # More than one chunk, and an optimizer that also has a float32 parameter.
    start = torch.randn(2, 150_000, generator=generator).to(BF16)
    weight, vector = Parameter(start.clone()), Parameter(torch.ones(3))
    twin, twin_vector = Parameter(start.float()), Parameter(torch.ones(3))
    ours, theirs = MixedPrecisionAdamW([weight, vector], **SETTINGS), torch.optim.AdamW([twin, twin_vector], **SETTINGS)
    for _ in range(3):
        gradient = torch.randn(2, 150_000, generator=generator)
        weight.grad, twin.grad = gradient.clone(), gradient
        vector.grad, twin_vector.grad = torch.ones(3), torch.ones(3)
        ours.step()
        theirs.step()
    assert torch.equal(master_of(ours, weight), twin.detach())
    assert torch.equal(vector, twin_vector)
    assert not torch.equal(twin.detach(), start.float())
    # In a tie there are two.
    distance = (weight.detach().double() - twin.detach().double()).abs()
    assert torch.equal(distance, (twin.detach().to(BF16).double() - twin.detach().double()).abs())
    assert weight.grad is None


def test_updates_that_would_each_round_away_add_up():
    weight = Parameter(torch.tensor([1.0], dtype=BF16))
    optimizer = MixedPrecisionAdamW([weight], **(SETTINGS | {"weight_decay": 0.0}))
    for _ in range(10):
        weight.grad = torch.tensor([-1.0])
        optimizer.step()
    assert master_of(optimizer, weight).item() == pytest.approx(1.01, abs=1e-4)
    # The next number of bfloat16 above 1 is 1.0078; 1 + 0.001 is 1.
    assert weight.item() == 1.0078125


def test_the_state_of_a_checkpoint_continues_bitwise():
    def run(*, interrupted: bool) -> Tensor:
        weight = Parameter(torch.tensor([1.0, -3.0], dtype=BF16))
        optimizer = MixedPrecisionAdamW([weight], **SETTINGS)
        for step in range(6):
            if interrupted and step == 3:
                saved = {key: value.clone() for key, value in optimizer.state[weight].items()}
                weight = Parameter(weight.detach().clone())
                optimizer = MixedPrecisionAdamW([weight], **SETTINGS)
                optimizer.state[weight] = saved
            weight.grad = torch.tensor([0.3, -1.0 - step])
            optimizer.step()
        return master_of(optimizer, weight)

    assert torch.equal(run(interrupted=True), run(interrupted=False))


def test_what_stays_for_the_run_is_there_before_the_first_pass():
    weight = Parameter(torch.ones(2, 3, dtype=BF16))
    optimizer = MixedPrecisionAdamW([weight], **SETTINGS)
    before = {key: value.data_ptr() for key, value in optimizer.state[weight].items()}
    weight.grad = torch.ones(2, 3)
    optimizer.step()
    assert {key: value.data_ptr() for key, value in optimizer.state[weight].items()} == before
    assert set(before) == {"step", "exp_avg", "exp_avg_sq", "residual"}


def test_gradients_are_summed_in_float32():
    weight = Parameter(torch.tensor([1.0, 2.0], dtype=BF16))
    MixedPrecisionAdamW([weight], **SETTINGS)
    for gradient in ([256.0, 1.0], [1.0, 2.0], [1.0, 4.0]):
        (weight * torch.tensor(gradient, dtype=BF16)).sum().backward()
    # In bfloat16, 256 + 1 is 256.
    assert weight.grad is not None
    assert weight.grad.tolist() == [258.0, 7.0]


def test_a_single_gradient_stays_small_until_it_is_added_to():
    weight = Parameter(torch.tensor([1.0, 2.0], dtype=BF16))
    MixedPrecisionAdamW([weight], **SETTINGS)
    take_gradients_as_they_come([weight])
    (weight * torch.tensor([256.0, 1.0], dtype=BF16)).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == BF16
    gradients_to_float32([weight])
    (weight * torch.tensor([1.0, 2.0], dtype=BF16)).sum().backward()
    assert weight.grad.tolist() == [257.0, 3.0]
