"""Configuration of `rlhf text-to-text`: encoder-decoder models, pretrained by span corruption or tuned on rows."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from policies.config import EncoderDecoderArchitecture, FullTuning, LoraTuning, StrictModel, Tuning
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig
from rlhf.evaluation.config import TasksConfig
from rlhf.runtime.config import CheckpointConfig


def _trains_whole_or_with_lora(tuning: Tuning) -> FullTuning | LoraTuning:
    if not isinstance(tuning, FullTuning | LoraTuning):
        raise ValueError(
            f"kind={tuning.kind}: of an encoder-decoder all weights train, or a LoRA adapter; set kind=full or lora"
        )
    if isinstance(tuning, LoraTuning) and tuning.embeddings:
        raise ValueError("embeddings=true: encoder and decoder share one embedding; set embeddings=false")
    return tuning


class TextToTextModelConfig(StrictModel):
    """An encoder-decoder to train: from random weights, or continued from a folder."""

    path: str | None = None
    """Folder or hub name to continue from; null starts from `architecture` with random weights."""
    architecture: EncoderDecoderArchitecture | None = None
    """Shape of a new model; null when `path` is given."""
    vocabulary_size: int | None = Field(default=None, ge=260)
    """Tokens of a new byte-level tokenizer, trained on `data.train`, without its sentinels; null with `path`."""
    tokenizer: Literal["bpe", "wordpiece"] = "bpe"
    """Kind of a new tokenizer."""
    sentinels: int = Field(default=32, ge=2)
    """Sentinel tokens of a new tokenizer; one more than the most spans of a text."""
    tuning: Annotated[Tuning, AfterValidator(_trains_whole_or_with_lora)] = FullTuning()
    """What trains: all weights, or a LoRA adapter on the frozen model of `path`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto` takes the GPU that the process sees, else the CPU."""

    @model_validator(mode="after")
    def _one_source(self) -> "TextToTextModelConfig":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give either path (continue) or architecture (new model)")
        if self.path is None and not isinstance(self.tuning, FullTuning):
            raise ValueError(
                f"tuning.kind={self.tuning.kind} with architecture: random weights would stay random under an adapter; "
                "pretrain the model first and name it in path, or set tuning.kind=full"
            )
        if (self.path is None) != (self.vocabulary_size is not None):
            raise ValueError(
                "vocabulary_size belongs to a new model: give it with architecture, leave it null with path"
            )
        return self


class TextToTextDataConfig(DataConfig):
    """Rows with `text`, or with `prompt` and `completion`, and tasks to ask at the end."""

    tasks: tuple[str, ...] = ()
    """Data sources of questions, each a task of its own (`question`, `choices`, `answer`; or `prompt`, `answer`)."""


class SpanCorruption(StrictModel):
    """Fill in what sentinels stand for (Raffel et al. 2020, section 3.1.4); rows have `text`."""

    kind: Literal["span_corruption"] = "span_corruption"
    """Tag of this variant."""
    noise_density: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that are left out."""
    mean_span_tokens: float = Field(default=3.0, ge=1)
    """Mean length of what one sentinel stands for."""


class Demonstrations(StrictModel):
    """Write the completion of a prompt; rows have the texts `prompt` and `completion`."""

    kind: Literal["demonstrations"] = "demonstrations"
    """Tag of this variant."""


Objective = Annotated[SpanCorruption | Demonstrations, Field(discriminator="kind")]


class TextToTextConfig(StageConfig):
    """`rlhf text-to-text`: trains an encoder-decoder; the loss is on the target's tokens alone."""

    model: TextToTextModelConfig
    """The model to train."""
    data: TextToTextDataConfig
    """What it learns from."""
    objective: Objective
    """What it learns to do."""
    max_input_tokens: int = Field(default=128, ge=8)
    """Longest input: longer texts are cut, longer prompts are bad rows."""
    max_target_tokens: int = Field(default=128, ge=2)
    """Longest target; a longer completion is a bad row."""
    examples_per_step: int = Field(default=32, ge=1)
    """Examples of one optimizer step."""
    micro_batch_examples: int = Field(default=32, ge=1)
    """Examples of one forward and backward pass; changes memory and speed only."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps; the data repeats as often as needed, with other spans each time."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    tasks: TasksConfig = TasksConfig()
    """How the rows of `data.tasks` are asked at the end."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3, warmup_fraction=0.05, schedule="cosine")
    """Optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""
