"""Checkpoints: complete or absent, never half."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf.runtime.training_state import (
    CheckpointError,
    NoIntactCheckpointError,
    TrainingState,
    load_latest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    with_owner,
)
from tests.full_disk import largest_file


def _state(step: int) -> TrainingState:
    return TrainingState(
        step, with_owner("policy", {"w": torch.full((2, 3), float(step))}), {"stream": {"epoch": step, "seed": 2**60}}
    )


def test_the_newest_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    for step in (2, 9, 10):
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


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def with_a_flipped_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    # The last digit of a number in the JSON files, the last mantissa in the tensors: all of them read well afterwards.
    place = max(content.rfind(digit) for digit in b"0123456789") if file.suffix == ".json" else -4
    content[place] ^= 1
    file.write_bytes(content)


def garbled(file: Path) -> None:
    file.write_text("[1, 2")


@pytest.mark.parametrize("damage", [truncated, with_a_flipped_bit, garbled, Path.unlink])
@pytest.mark.parametrize("file", ["state.safetensors", "state.json", "manifest.json"])
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(
    tmp_path: Path, file: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    folders = [save_checkpoint(tmp_path, _state(step), keep_last=2) for step in (1, 2)]
    damage(folders[1] / file)
    with caplog.at_level(logging.WARNING):
        state = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert state.step == 1
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"checkpoint {folders[1]} is damaged (")
    assert warning.endswith(f"); continuing from {folders[0]}")


def test_an_empty_manifest_vouches_for_nothing(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, _state(1), keep_last=1)
    (folder / "manifest.json").write_text('{"sha256": {}}')
    with pytest.raises(CheckpointError, match=r"the checksum of state\.safetensors is not that in manifest\.json"):
        load_latest_checkpoint(tmp_path)


def test_no_intact_checkpoint_is_an_error_of_one_line_and_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest_checkpoint(tmp_path) is None
    for step in (1, 2):
        (save_checkpoint(tmp_path, _state(step), keep_last=2) / "state.json").unlink()
    with pytest.raises(NoIntactCheckpointError) as caught:
        load_latest_checkpoint(tmp_path)
    assert caught.value.nothing_to_resume
    assert str(caught.value) == (
        f"no checkpoint in {tmp_path} is intact (step-00000002: state.json is missing); start again in another run_dir"
    )


def test_a_damaged_checkpoint_of_a_later_step_does_not_push_out_an_intact_one(tmp_path: Path) -> None:
    for step in (5, 9):
        folder = save_checkpoint(tmp_path, _state(step), keep_last=2)
    garbled(folder / "state.json")
    save_checkpoint(tmp_path, _state(7), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000007"]


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, _state(1), keep_last=2)
    too_large = TrainingState(2, {"w": torch.zeros(1000)}, {})
    expected = r"^checkpoint of step 2: .*step-00000002 could not be written \(file too large\)"
    with pytest.raises(CheckpointError, match=expected), largest_file(1000):
        save_checkpoint(tmp_path, too_large, keep_last=2)
    state = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert state.step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_everything_is_on_the_disk_before_the_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
        synced.append((name, (tmp_path / "step-00000001").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    save_checkpoint(tmp_path, _state(1), keep_last=1)
    before = {name.partition(".tmp-")[0] for name, has_its_name in synced if not has_its_name}
    assert before == {"state.safetensors", "state.json", "manifest.json", "step-00000001"}
    assert synced[-1] == (tmp_path.name, True)


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "again": whole, "part": whole[2:4], "transposed": whole.view(2, 3).t()}
    save_checkpoint(tmp_path, TrainingState(1, tensors, {}), keep_last=1)
    state = load_latest_checkpoint(tmp_path)
    assert state is not None
    assert all(torch.equal(state.tensors[name], tensor) for name, tensor in tensors.items())


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
