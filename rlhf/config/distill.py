"""Configuration of `rlhf distill`: a smaller model from a larger one."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies.config import ModelConfig, StrictModel
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig
from rlhf.runtime.config import CheckpointConfig
from rollout.config import SamplingConfig


class GivenStudent(StrictModel):
    """A smaller model that exists, with the tokenizer of the teacher."""

    kind: Literal["model"] = "model"
    """Tag of this variant."""
    path: str
    """Its folder or hub name."""
    steps: int = Field(default=500, ge=1)
    """Optimizer steps."""


class Shrink(StrictModel):
    """One cut, and the training that recovers from it."""

    layers: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Layers that stay, by their number before this cut; null keeps all."""
    keep_every: int | None = Field(default=None, ge=2)
    """Every n-th layer stays: 0, n, 2n, ...; null keeps all."""
    key_value_groups: int | None = Field(default=None, ge=1)
    """Attention groups (a head of keys and values with its query heads) that stay in each layer, by magnitude."""
    intermediate_size: int | None = Field(default=None, ge=1)
    """Neurons of the MLP that stay in each layer, by magnitude."""
    steps: int = Field(default=500, ge=1)
    """Optimizer steps of recovery, with the original as teacher."""

    @model_validator(mode="after")
    def _cuts_something_once(self) -> Self:
        if self.layers is not None and self.keep_every is not None:
            raise ValueError(f"layers={list(self.layers)} with keep_every={self.keep_every}: give one of them")
        return self


class ShrunkStudent(StrictModel):
    """A student cut out of the teacher, in one cut or several, each followed by recovery training."""

    kind: Literal["shrunk"] = "shrunk"
    """Tag of this variant."""
    cuts: tuple[Shrink, ...] = Field(min_length=1)
    """The cuts, in order; small ones lose less than one large one."""


class LogitObjective(StrictModel):
    """The student learns the teacher's distribution of every token of texts (Hinton et al. 2015)."""

    kind: Literal["logits"] = "logits"
    """Tag of this variant."""
    temperature: float = Field(default=1.0, gt=0)
    """T of both distributions; the loss is T^2 KL(teacher || student)."""
    data_weight: float = Field(default=0.0, ge=0, lt=1)
    """Weight w of the cross-entropy of the text itself: (1 - w) T^2 KL + w CE."""


class SequenceObjective(StrictModel):
    """The student learns to say what the teacher says: cross-entropy of the teacher's samples (Kim and Rush 2016).

    They take the teacher's most likely sequence; here it is sampled, at a temperature that may be low.
    """

    kind: Literal["sequences"] = "sequences"
    """Tag of this variant."""
    sampling: SamplingConfig = SamplingConfig()
    """How the teacher answers."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers of the teacher to each prompt."""
    max_prompt_tokens: int = Field(default=128, ge=1)
    """A longer prompt is a bad row."""


class ScoreObjective(StrictModel):
    """A reward model learns the scores of another one by regression."""

    kind: Literal["scores"] = "scores"
    """Tag of this variant."""


Objective = Annotated[LogitObjective | SequenceObjective | ScoreObjective, Field(discriminator="kind")]


class DistillConfig(StageConfig):
    """`rlhf distill`: what a large model knows into a smaller one."""

    teacher: ModelConfig
    """The model that is learned from; with `objective.kind=scores` a reward model."""
    student: Annotated[GivenStudent | ShrunkStudent, Field(discriminator="kind")]
    """The model that learns."""
    data: DataConfig
    """`logits`: rows with `text`; `sequences`: rows with `prompt`; `scores`: rows with `prompt` and `completion`."""
    objective: Objective = LogitObjective()
    """What is learned of the teacher."""
    sequence_tokens: int = Field(default=128, ge=8)
    """Tokens of one training sequence of `logits`; longest prompt plus completion of `scores`."""
    sequences_per_step: int = Field(default=32, ge=1)
    """Sequences of one optimizer step."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Tokens of one forward and backward pass."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; before and after each cut's training it is always evaluated."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.05, schedule="cosine")
    """Optimizer; moments and schedule start anew after each cut."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @model_validator(mode="after")
    def _best_is_one_of_equals(self) -> Self:
        best = self.checkpoint.keep_best
        if best is not None and len(self.phase_steps) > 1:
            raise ValueError(
                f"checkpoint.keep_best.metric={best.metric} with {len(self.phase_steps)} cuts: students of different "
                "sizes are not compared; make one cut a run, or set checkpoint.keep_best=null"
            )
        return self

    @property
    def phase_steps(self) -> tuple[int, ...]:
        """Optimizer steps after each cut; of a given student, one number."""
        return (
            (self.student.steps,)
            if isinstance(self.student, GivenStudent)
            else tuple(cut.steps for cut in self.student.cuts)
        )
