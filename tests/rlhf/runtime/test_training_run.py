"""What surrounds a stage's loop: here without the loop, with rows written by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.config import SftConfig
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_run import open_training_run
from rlhf.runtime.training_state import TrainingState, save_checkpoint
from rollout.responses import NonFiniteLogitsError

LOSSES = [*15 * [1.0], 3.0, *15 * [1.0], 3.0]


def sft(folder: Path) -> SftConfig:
    settings = {"run_dir": str(folder / "run"), "model": {"path": "x"}, "data": {"train": "x"}}
    return SftConfig.model_validate(settings | {"tracking": {"wandb": "off"}})


def train(config: SftConfig, *, last: int, checkpoint_at: int | None = None, resume: bool = False) -> RunFiles:
    """Logs steps until `last`, the end of the run or a kill; from the step after the checkpoint where one is loaded."""
    with open_training_run(config, resume=resume, stage="sft", total_steps=len(LOSSES)) as run:
        for step in range(1 if run.checkpoint is None else run.checkpoint.step + 1, last + 1):
            run.metrics.log(step, {"loss/train": LOSSES[step - 1]})
            if step == checkpoint_at:
                state = TrainingState(step, {"weight": torch.zeros(1)}, {})
                save_checkpoint(run.folder.checkpoints_path, state, keep_last=2)
        if last == len(LOSSES):
            run.metrics.close({"steps": last})
    return RunFiles(config.run_dir)


def test_a_stage_other_than_ppo_is_watched_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(sft(tmp_path), last=len(LOSSES))
    assert [(alert["step"], alert["rule"]) for alert in run.read_alerts()] == [(16, "loss_spike"), (32, "loss_spike")]
    assert "sft warning at step 16 (loss_spike): loss/train is 3, the median" in capsys.readouterr().out
    health: Any = run.read_summary()["health"]
    assert health["verdict"] == "warning"


@pytest.mark.parametrize(("checkpoint", "killed_after"), [(10, 20), (16, 18), (18, 31), (31, 31)])
def test_a_resumed_run_alerts_as_a_straight_one(tmp_path: Path, checkpoint: int, killed_after: int) -> None:
    (tmp_path / "straight").mkdir()
    straight = train(sft(tmp_path / "straight"), last=len(LOSSES))
    config = sft(tmp_path)
    train(config, last=killed_after, checkpoint_at=checkpoint)
    resumed = train(config, last=len(LOSSES), resume=True)
    assert resumed.alerts_path.read_bytes() == straight.alerts_path.read_bytes()
    assert resumed.read_summary() == straight.read_summary()


def fail_in_the_second_step(config: SftConfig, error: RuntimeError) -> None:
    with open_training_run(config, resume=False, stage="sft", total_steps=9) as run:
        run.metrics.log(1, {"loss/train": 1.0})
        raise error


@pytest.mark.parametrize(
    ("error", "finding"),
    [
        (
            NonFiniteLossError("loss", float("inf"), 2, "weight a.b"),
            "loss is inf (first tensor that is not finite: weight a.b)",
        ),
        (NonFiniteLogitsError("the logits hold NaN"), "the logits hold NaN"),
    ],
    ids=["loss", "logits"],
)
def test_a_number_that_ends_the_run_is_told_as_an_alert_of_the_step_that_failed(
    tmp_path: Path, error: RuntimeError, finding: str
) -> None:
    config = sft(tmp_path)
    with pytest.raises(type(error)):
        fail_in_the_second_step(config, error)
    (alert,) = RunFiles(config.run_dir).read_alerts()
    assert (alert["step"], alert["rule"], alert["finding"]) == (2, "training_stopped", finding)


def test_any_other_error_is_no_finding_of_the_rules(tmp_path: Path) -> None:
    config = sft(tmp_path)
    with pytest.raises(KeyboardInterrupt), open_training_run(config, resume=False, stage="sft", total_steps=9):
        raise KeyboardInterrupt
    assert RunFiles(config.run_dir).read_alerts() == []
