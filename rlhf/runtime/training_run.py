"""What every training stage opens before its first step: run folder, newest checkpoint, health rules, metric logger.

Owns the order of opening, that rows of steps which the checkpoint does not know are dropped before they are written
anew, and that a number which ends the run is told like what the health rules find. What is trained, saved and said at
the end is the stage's business.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlhf.config import StageConfig
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.health.catalogue import rules_for
from rlhf.runtime.health.monitor import HealthMonitor
from rlhf.runtime.health.training import TRAINING_STOPPED
from rlhf.runtime.metrics import MetricLogger, open_metric_logger
from rlhf.runtime.run_folder import RunFiles, RunFolder, open_run
from rlhf.runtime.training_state import TrainingState, load_latest_checkpoint
from rollout.responses import NonFiniteLogitsError


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """The surroundings of one training stage.

    Attributes:
        folder: Its run folder, locked.
        metrics: Its logger.
        checkpoint: Where to continue; None at a start, or where the run was interrupted before its first checkpoint.
    """

    folder: RunFolder
    metrics: MetricLogger
    checkpoint: TrainingState | None


class Follower(Protocol):
    """The trainer of a rank that leaves the run folder to the first one."""

    def restore(self, state: TrainingState, /) -> None:
        """Goes back to a saved state."""
        ...

    def train(self) -> object:
        """Trains to the end."""
        ...


def follow(follower: Follower, run_dir: str, *, resume: bool) -> None:
    """Trains beside the first rank, from the checkpoint that it continues from where it resumes."""
    checkpoint = load_latest_checkpoint(RunFiles(run_dir).checkpoints_path) if resume else None
    if checkpoint is not None:
        follower.restore(checkpoint)
    follower.train()


@contextmanager
def open_training_run(config: StageConfig, *, resume: bool, stage: str, total_steps: int) -> Iterator[TrainingRun]:
    """Creates `run_dir`, or with `resume` continues what is in it; closes everything with the context.

    Args:
        config: The stage's configuration.
        resume: Continue instead of refusing a folder that holds a run.
        stage: Name for the terminal and W&B.
        total_steps: Steps of the whole run.

    Raises:
        ValueError: the folder holds a run already, holds none to continue, or holds one of another configuration.
        NoIntactCheckpointError: there are checkpoints, and none of them is intact.
    """
    resolved = config.model_dump(mode="json")
    with open_run(config.run_dir, config, resume=resume) as folder:
        checkpoint = load_latest_checkpoint(folder.checkpoints_path) if resume else None
        folder.truncate_after(checkpoint.step if checkpoint else -1)
        health = HealthMonitor(rules_for(config))
        health.replay(folder.read_metrics())
        with open_metric_logger(
            folder, config.tracking, resolved, stage=stage, total_steps=total_steps, health=health
        ) as metrics:
            try:
                yield TrainingRun(folder, metrics, checkpoint)
            except (NonFiniteLossError, NonFiniteLogitsError) as error:
                finding = error.finding if isinstance(error, NonFiniteLossError) else str(error)
                metrics.log_alert(TRAINING_STOPPED.alert(1 + (folder.last_step or 0), finding))
                raise
