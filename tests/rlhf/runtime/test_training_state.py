"""Checkpoints: complete or absent, never half."""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf.runtime import training_state
from rlhf.runtime.training_state import (
    CheckpointError,
    TrainingState,
    load_latest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    with_owner,
)


def _state(step: int) -> TrainingState:
    return TrainingState(
        step, with_owner("policy", {"w": torch.full((2, 3), float(step))}), {"stream": {"epoch": step, "seed": 2**60}}
    )


def test_the_newest_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, _state(step), keep_last=5)
    state = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert state.step == 10
    assert state.values == {"stream": {"epoch": 10, "seed": 2**60}}
    torch.testing.assert_close(state.tensors_of("policy")["w"], torch.full((2, 3), 10.0), rtol=0, atol=0)


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, _state(step), keep_last=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
def test_a_truncated_checkpoint_is_reported_and_the_previous_one_used(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, _state(step), keep_last=2)
    damaged = tmp_path / "step-00000002" / file
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        state = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert state.step == 1
    assert "step-00000002" in caplog.text


def test_no_intact_checkpoint_is_an_error_and_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path) is None
    folder = save_checkpoint(tmp_path, _state(1), keep_last=1)
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match="intact"):
        load_latest_checkpoint(tmp_path)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, _state(1), keep_last=2)

    def refuse(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training_state, "save_file", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        save_checkpoint(tmp_path, _state(2), keep_last=2)
    state = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert state.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_an_optimizer_continues_bitwise_from_its_tensors() -> None:
    def problem() -> tuple[nn.Linear, torch.optim.AdamW]:
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)

    def train(layer: nn.Linear, optimizer: torch.optim.AdamW, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            layer(torch.tensor([[1.0, -2.0, 0.5]])).square().sum().backward()
            optimizer.step()

    straight, straight_optimizer = problem()
    train(straight, straight_optimizer, 5)
    first, first_optimizer = problem()
    train(first, first_optimizer, 2)
    resumed, resumed_optimizer = problem()
    resumed.load_state_dict(first.state_dict())
    load_optimizer_tensors(
        resumed_optimizer, resumed.named_parameters(), optimizer_tensors(first_optimizer, first.named_parameters())
    )
    train(resumed, resumed_optimizer, 3)
    assert torch.equal(straight.weight, resumed.weight)
    assert torch.equal(straight.bias, resumed.bias)
