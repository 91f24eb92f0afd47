"""Configuration of `rlhf sft`."""

from typing import Self

from pydantic import Field, model_validator

from policies.config import StrictModel
from rlhf.config.retention import EwcRetention, NoRetention, ReplayRetention, Retention
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig, TrainedModelConfig
from rlhf.instructions.config import MixtureConfig
from rlhf.runtime.config import CheckpointConfig, RanksConfig


class SftDataConfig(DataConfig):
    """Demonstrations, or rows of many tasks that templates turn into them."""

    mixture: MixtureConfig | None = None
    """Instruction tuning: tasks, templates and held-out clusters; null takes the rows as they are."""


class SftSettings(StrictModel):
    """A fine-tuning without data and without a place for the run."""

    model: TrainedModelConfig
    """The model to tune."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    examples_per_step: int = Field(default=32, ge=1)
    """Examples of one optimizer step."""
    micro_batch_examples: int = Field(default=32, ge=1)
    """Examples of one forward and backward pass; must divide `examples_per_step`, or each rank's part of it."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest example; a longer one is a bad row."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, warmup_fraction=0.03, schedule="cosine")
    """Optimizer."""
    ranks: RanksConfig = RanksConfig()
    """Processes that train together."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    retention: Retention = NoRetention()
    """What is done against forgetting."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_step(self) -> Self:
        workers = self.ranks.workers
        if self.examples_per_step % (self.micro_batch_examples * workers):
            of_each_rank = "" if workers == 1 else f" / ranks.workers={workers}"
            raise ValueError(
                f"micro_batch_examples={self.micro_batch_examples} must divide "
                f"examples_per_step={self.examples_per_step}{of_each_rank}"
            )
        return self

    @model_validator(mode="after")
    def _steps_have_room_for_old_and_new(self) -> Self:
        if isinstance(self.retention, ReplayRetention) and self.examples_per_step < 2:
            raise ValueError(
                "examples_per_step=1: retention.kind=replay needs room for an old example beside a new one; raise it"
            )
        return self


class SftConfig(SftSettings, StageConfig):
    """`rlhf sft`: supervised fine-tuning, loss on completions only."""

    data: SftDataConfig
    """Rows with `prompt` and `completion`, or `messages`; of a mixture, rows of tasks."""

    @model_validator(mode="after")
    def _old_data_are_named(self) -> Self:
        if isinstance(self.retention, ReplayRetention | EwcRetention) and self.retention.data is None:
            raise ValueError(
                f"retention.data is missing: retention.kind={self.retention.kind} needs old rows (demonstrations, or "
                "rows with `text`); name them, or set kind=kl or l2_sp"
            )
        return self
