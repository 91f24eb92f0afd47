"""Which steps of a run are saved, and which of these states stay: the last ones, and the best by a metric.

Owns the choice. The format and the writing are `training_state`; what a state holds is the trainer's business. The best
step is read from the metrics lines of the steps that are saved, so a resumed run knows it without further state.
"""

import logging
import math
from collections.abc import Mapping
from typing import SupportsFloat, cast

from rlhf.runtime.config import CheckpointConfig
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.training_state import TrainingState, save_checkpoint, saved_steps

logger = logging.getLogger(__name__)

BEST_MODEL = "best"
"""Folder inside run_dir that holds the model of the best step, beside `model`, that of the last."""


class KeptCheckpoints:
    """When a run saves its state, and what stays of it.

    Args:
        folder: The run's, with the metrics lines of the steps before; None on ranks that leave saving to the first, for
            which nothing is ever due.
        config: `checkpoint` of the stage.
        total_steps: Last step of the run, which is always saved.

    Attributes:
        best_step: Step with the best value so far; of equal ones, the first. None before the first value, and where
            `keep_best` is null.
    """

    def __init__(self, folder: RunFolder | None, config: CheckpointConfig, total_steps: int) -> None:
        self._folder, self._config, self._total_steps = folder, config, total_steps
        self.best_step: int | None = None
        self._best_value = math.nan
        if config.keep_best is None or folder is None:
            return
        saved = saved_steps(folder.checkpoints_path)
        for row in folder.read_metrics():
            if row["step"] in saved:
                self.note(cast(int, row["step"]), cast(Mapping[str, SupportsFloat], row))

    def note(self, step: int, metrics: Mapping[str, SupportsFloat]) -> None:
        """Looks at the numbers of a step, in the order of steps; those that lack the metric cannot be the best."""
        best = self._config.keep_best
        if best is None:
            return
        value = float(metrics.get(best.metric, math.nan))
        is_better = value > self._best_value if best.direction == "higher" else value < self._best_value
        if math.isfinite(value) and (self.best_step is None or is_better):
            self.best_step, self._best_value = step, value
        if step == self._total_steps and self.best_step is None:
            logger.warning("checkpoint.keep_best.metric=%s: no step has logged it, so none is the best", best.metric)

    def is_due(self, step: int) -> bool:
        """Whether the state after this step is saved, once `note` has seen its numbers."""
        if self._folder is None:
            return False
        return step in (self._total_steps, self.best_step) or step % self._config.every_steps == 0

    def save(self, state: TrainingState, *, beside_last: int = 0) -> None:
        """Saves, and removes what need not stay.

        Args:
            state: The state.
            beside_last: So many checkpoints stay beyond `keep_last`.

        Raises:
            CheckpointError: the disk refuses it.
        """
        assert self._folder is not None, "this rank leaves saving to the first"
        best = () if self.best_step is None else (self.best_step,)
        keep_last = self._config.keep_last + beside_last
        save_checkpoint(self._folder.checkpoints_path, state, keep_last=keep_last, also_keep=best)

    def summary(self) -> dict[str, object]:
        """The best step and its value, for summary.json; empty where `keep_best` is null."""
        if self._config.keep_best is None:
            return {}
        return {"best": {"step": self.best_step, self._config.keep_best.metric: self._best_value}}
