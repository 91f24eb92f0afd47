"""`rlhf distill`: a smaller model learns from a larger one, after cuts or from a model of its own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.config import DistillConfig
from rlhf.config.distill import ScoreObjective
from rlhf.distillation.lesson import Lesson
from rlhf.distillation.loop import Distillation
from rlhf.distillation.policies import PolicyLesson
from rlhf.distillation.rewards import RewardLesson
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.runtime.training_run import open_training_run


def run(config: DistillConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, the student, with metrics, summary and report beside it.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
    """
    lesson = build_lesson(config)
    with open_training_run(config, resume=resume, stage="distill", total_steps=sum(config.phase_steps)) as run:
        distillation = Distillation(config, lesson, run)
        if run.checkpoint is not None:
            distillation.restore(run.checkpoint)
        distillation.train()
        path = run.folder.path
        distillation.save_model("model")
        rows = run.folder.read_metrics()
        run.metrics.close(
            {
                **_flat(distillation.measured),
                **distillation.summary(),
                "train_loss": rows[-1]["loss/train"],
                "seconds": math.fsum(float(str(row["time/step"])) for row in rows),
            }
        )
        write_report(path, generic_training_page(path, f"Distillation of {path.name}"))
    print_closing(path, _findings(distillation.measured))


def build_lesson(config: DistillConfig) -> Lesson:
    """Teacher, first student and data.

    Raises:
        ValueError: they do not fit.
    """
    return RewardLesson(config) if isinstance(config.objective, ScoreObjective) else PolicyLesson(config)


def _findings(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each phase's training brought, in words."""
    return [
        f"phase {number}, {phase['parameters']:,} parameters: "
        + ", ".join(f"{key} {before:.4g} to {phase['after'][key]:.4g}" for key, before in phase["before"].items())
        for number, phase in enumerate(measured, start=1)
    ]


def _flat(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """One part of the summary for each phase: size, and each measure before and after training."""
    return {
        f"phase {number}": {
            "parameters": phase["parameters"],
            **{f"{key} {when}": value for when in ("before", "after") for key, value in phase[when].items()},
        }
        for number, phase in enumerate(measured, start=1)
    }
