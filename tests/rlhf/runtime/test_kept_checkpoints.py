"""Which checkpoints a run writes and which stay."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from rlhf.runtime.config import CheckpointConfig
from rlhf.runtime.kept_checkpoints import KeptCheckpoints
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.training_state import TrainingState

SCORES = {1: 0.5, 2: 0.9, 3: 0.9, 4: 0.2, 5: 0.7, 6: 0.1}
HIGHEST = {"metric": "eval/score", "direction": "higher"}


def config(best: Mapping[str, str] | None, **changes: Any) -> CheckpointConfig:
    return CheckpointConfig.model_validate({"every_steps": 3, "keep_last": 1, "keep_best": best, **changes})


def train(folder: RunFolder, settings: CheckpointConfig, *, first: int = 1, last: int = 6) -> tuple[list[int], Any]:
    """Steps that were saved, and what summary.json gets."""
    checkpoints, saved = KeptCheckpoints(folder, settings, 6), []
    for step in range(first, last + 1):
        metrics = {"eval/score": SCORES[step], "objective/kl": -SCORES[step]}
        folder.append_metrics(step, metrics)
        checkpoints.note(step, metrics)
        if checkpoints.is_due(step):
            checkpoints.save(TrainingState(step, {"w": torch.zeros(1)}, {}))
            saved.append(step)
    return saved, checkpoints.summary()


def kept(folder: RunFolder) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.checkpoints_path.iterdir())


def test_without_keep_best_the_last_ones_stay(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as folder:
        assert train(folder, config(None)) == ([3, 6], {})
        assert kept(folder) == [6]


@pytest.mark.parametrize("best", [HIGHEST, {"metric": "objective/kl", "direction": "lower"}])
def test_the_best_step_is_saved_when_it_comes_and_stays_beside_the_last(tmp_path: Path, best: dict[str, str]) -> None:
    with RunFolder.create(tmp_path, {}) as folder:
        saved, summary = train(folder, config(best))
        # 1 was the best until 2 came; 3 is no better than 2, but due.
        assert saved == [1, 2, 3, 6]
        assert kept(folder) == [2, 6]
        assert summary["best"] == {"step": 2, best["metric"]: 0.9 if best is HIGHEST else -0.9}


def test_a_resumed_run_knows_the_best_step_from_the_metrics(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as folder:
        train(folder, config(HIGHEST), last=4)
        saved, summary = train(folder, config(HIGHEST), first=5)
        assert saved == [6]
        assert kept(folder) == [2, 6]
        assert summary == {"best": {"step": 2, "eval/score": 0.9}}


def test_steps_without_the_metric_or_with_nan_are_passed_over(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as folder:
        checkpoints = KeptCheckpoints(folder, config(HIGHEST), 6)
        for step, metrics in enumerate([{}, {"eval/score": float("nan")}, {"eval/score": -1.0}, {}], start=1):
            checkpoints.note(step, metrics)
        assert checkpoints.best_step == 3
        assert not checkpoints.is_due(4)


def test_a_metric_that_no_step_has_logged_is_told_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RunFolder.create(tmp_path, {}) as folder, caplog.at_level(logging.WARNING):
        checkpoints = KeptCheckpoints(folder, config({"metric": "eval/loss", "direction": "lower"}), 6)
        for step in range(1, 7):
            checkpoints.note(step, {"eval/score": 1.0})
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint.keep_best.metric=eval/loss: no step has logged it, so none is the best"
    ]


def test_an_unknown_metric_is_refused_with_the_closest_one() -> None:
    with pytest.raises(ValidationError, match=r"undocumented metric 'eval/scores' \(close: 'eval/score'\)"):
        config({"metric": "eval/scores", "direction": "higher"})
