"""Configuration of `rlhf forgetting`: tasks in a row, and the ways of learning them that are compared."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from policies.config import FullTuning, StrictModel, Tuning
from rlhf.config.retention import EwcRetention, NoRetention, ReplayRetention, Retention
from rlhf.config.sft import SftConfig, SftSettings
from rlhf.config.shared import StageConfig
from rlhf.evaluation.config import TasksConfig

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class LearnedTask(StrictModel):
    """One task of the sequence."""

    name: str = Field(pattern=_NAME)
    """Name of its column and row, and of its run folders."""
    train: str
    """Demonstrations, as in `data.train` of `rlhf sft`."""
    eval: str
    """Held-out questions: rows of `question`, `choices` and `answer`, or of `prompt` and `answer`."""


class ComparedWay(StrictModel):
    """One way of learning the sequence: what differs from `sft`."""

    name: str = Field(pattern=_NAME)
    """Name of its row, and of its run folders."""
    tuning: Tuning | None = None
    """What trains; null is `sft.model.tuning`."""
    retention: Retention = NoRetention()
    """What is done against forgetting. Without `data`, replay and EWC take what was learned before: `data.pretrain` and
    the earlier tasks; where that is nothing, as for a first task without `data.pretrain`, they are left out."""
    adapters: Literal["continued", "per_task"] = "continued"
    """`continued` trains one model on; `per_task` gives each task an adapter of its own on the start, and asks each of
    its adapter: what was learned stays by construction (parameter isolation), and whoever asks must know the task."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null is `sft.optimizer.learning_rate`."""


class ForgettingDataConfig(StrictModel):
    """Text that the start was trained on."""

    pretrain: str | None = None
    """Rows with `text` that replay and EWC may use beside the earlier tasks; take a slice that does not drown them."""
    pretrain_eval: str | None = None
    """Held-out rows with `text`; how their perplexity moves is the drift."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops and counts it."""


class ForgettingConfig(StageConfig):
    """`rlhf forgetting`: tasks in a row in several ways; `seed` decides which rows are shown solved."""

    sft: SftSettings
    """The start, and the settings of every fine-tuning."""
    tasks: tuple[LearnedTask, ...] = Field(min_length=2)
    """What is learned, in this order."""
    ways: tuple[ComparedWay, ...] = Field(min_length=1)
    """How it is learned: the rows of the table."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Each way learns the sequence once with each."""
    data: ForgettingDataConfig = ForgettingDataConfig()
    """Text from before."""
    questions: TasksConfig = TasksConfig()
    """How tasks are asked; one number of shots."""
    measure: Literal["sum", "mean"] = "sum"
    """Which of several choices is the answer: that of the highest log-prob, summed or per token. Answers in free words
    are compared as a whole."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        for field, names in (
            ("tasks", [task.name for task in self.tasks]),
            ("ways", [way.name for way in self.ways]),
            ("seeds", self.seeds),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: {list(names)} are not all different; name each once")
        if len(self.questions.shots) > 1:
            raise ValueError(
                f"questions.shots={list(self.questions.shots)}: a task has one score here; give one number"
            )
        return self

    @model_validator(mode="after")
    def _every_way_can_be_learned(self) -> Self:
        for way in self.ways:
            if way.adapters == "per_task" and isinstance(self.tuning_of(way), FullTuning):
                raise ValueError(
                    f"ways: {way.name!r} has adapters=per_task and tuning.kind=full, which has no adapter; set another "
                    "tuning, or adapters=continued"
                )
            self.sft_stage(way, 0, seed=0, start=self.sft.model.path, old=None)
        return self

    def tuning_of(self, way: ComparedWay) -> Tuning:
        """What trains."""
        return self.sft.model.tuning if way.tuning is None else way.tuning

    def folder(self, way: ComparedWay, task: int, *, seed: int) -> Path:
        """Run folder of one fine-tuning."""
        return Path(self.run_dir) / way.name / f"seed-{seed}" / f"{task + 1}-{self.tasks[task].name}"

    def sft_stage(self, way: ComparedWay, task: int, *, seed: int, start: str, old: str | None) -> SftConfig:
        """The fine-tuning of one task.

        Args:
            way: How.
            task: Which, from 0.
            seed: Of the run.
            start: Model folder that it begins with.
            old: What was learned before; None where that is nothing.

        Raises:
            ValueError: `rlhf sft` does not accept the settings.
        """
        base = self.sft.model_dump()
        rate = {} if way.learning_rate is None else {"learning_rate": way.learning_rate}
        given = {
            "model": {**base["model"], "path": start, "tuning": self.tuning_of(way).model_dump()},
            "optimizer": {**base["optimizer"], **rate},
            "retention": _with_old_data(way.retention, old).model_dump(),
            "data": {"train": self.tasks[task].train, "on_bad_row": self.data.on_bad_row},
            "run_dir": str(self.folder(way, task, seed=seed)),
            "seed": seed,
            "tracking": self.tracking.model_dump(),
        }
        # From plain values, so that what a way changes is checked like any configuration.
        return SftConfig.model_validate(base | given)


def _with_old_data(retention: Retention, old: str | None) -> Retention:
    if not isinstance(retention, ReplayRetention | EwcRetention) or retention.data is not None:
        return retention
    return NoRetention() if old is None else retention.model_copy(update={"data": old})
