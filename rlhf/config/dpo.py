"""Configuration of `rlhf dpo`."""

from typing import Annotated

from pydantic import Field, model_validator

from reward.config import PairsFormat, RankingsFormat
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig, TrainedModelConfig
from rlhf.runtime.config import CheckpointConfig


class DpoDataConfig(DataConfig):
    """Comparisons of responses to a prompt."""

    format: Annotated[PairsFormat | RankingsFormat, Field(discriminator="kind")] = PairsFormat()
    """Shape of the rows; a ranking gives all its pairs that are not ties. How sure or strong a label is is not read."""


class DpoConfig(StageConfig):
    """`rlhf dpo`: direct preference optimisation (Rafailov et al. 2023), without reward model and rollouts."""

    model: TrainedModelConfig
    """The model to tune; as it is at the start, it is the reference too."""
    data: DpoDataConfig
    """Comparisons."""
    beta: float = Field(default=0.1, gt=0)
    """Reward units per nat: the implicit reward is beta times the log-ratio of policy to reference. Larger values hold
    the policy nearer to the reference."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    pairs_per_step: int = Field(default=32, ge=1)
    """Pairs of one optimizer step."""
    micro_batch_pairs: int = Field(default=16, ge=1)
    """Pairs of one forward and backward pass; must divide `pairs_per_step`."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest prompt plus response; a longer one is a bad row."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6, warmup_fraction=0.1, schedule="linear")
    """Optimizer; LoRA takes about ten times the rate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_step(self) -> "DpoConfig":
        if self.pairs_per_step % self.micro_batch_pairs:
            raise ValueError(
                f"micro_batch_pairs={self.micro_batch_pairs} must divide pairs_per_step={self.pairs_per_step}"
            )
        return self
