"""Configuration of `rlhf pretrain`."""

from typing import Literal, cast, get_args

from pydantic import Field, model_validator

from policies.config import ArchitectureConfig, StrictModel, TokenizerKind
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig
from rlhf.runtime.config import CheckpointConfig, RanksConfig


class PretrainModelConfig(StrictModel):
    """A decoder to pretrain: from random weights, or continued from a folder."""

    path: str | None = None
    """Folder or hub name to continue from; null starts from `architecture` with random weights."""
    architecture: ArchitectureConfig | None = None
    """Shape of a new model; null when `path` is given."""
    vocabulary_size: int | None = Field(default=None, ge=260)
    """Tokens of a new byte-level tokenizer, trained on `data.train`; null when `path` is given, or `tokenizer` names a
    folder."""
    tokenizer: str | None = None
    """`bpe`, `wordpiece` (520 tokens or more) or `unigram` for a new tokenizer, or the folder of one that exists, such
    as `rlhf tokenizers` leaves; null is `bpe`, or the tokenizer of `path`."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto` takes the GPU that the process sees, else the CPU."""

    @property
    def new_tokenizer(self) -> TokenizerKind | None:
        """Kind of the tokenizer to train; None where one exists."""
        kind = self.tokenizer or ("bpe" if self.path is None else None)
        return cast(TokenizerKind, kind) if kind in get_args(TokenizerKind) else None

    @model_validator(mode="after")
    def _one_source(self) -> "PretrainModelConfig":
        is_new = self.tokenizer is None or self.tokenizer in get_args(TokenizerKind)
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give either path (continue) or architecture (new model)")
        if self.path is not None and (self.vocabulary_size or self.tokenizer):
            raise ValueError("the model of path has a tokenizer; leave vocabulary_size and tokenizer null")
        if self.path is None and is_new != (self.vocabulary_size is not None):
            raise ValueError(
                f"tokenizer={self.tokenizer}: a new tokenizer ({' | '.join(get_args(TokenizerKind))}) needs "
                "vocabulary_size, the folder of one that exists has its own"
            )
        return self


class SequencesRamp(StrictModel):
    """A batch that grows linearly with the tokens seen (Brown et al. 2020, appendix B)."""

    first: int = Field(ge=1)
    """Sequences of the first step; at most `sequences_per_step`."""
    tokens: int = Field(ge=1)
    """Tokens of training after which steps are full."""


class SpikeConfig(StrictModel):
    """Loss spikes: back to a checkpoint, past the data, and on (Chowdhery et al. 2022, section 5.1).

    A loss or gradient that is no number counts as a spike. The update of a step that spikes is never taken.
    """

    z_threshold: float = Field(default=8.0, gt=0)
    """A loss so many robust standard deviations above the median of the window is a spike."""
    window_steps: int = Field(default=50, ge=4)
    """Steps before that say what is usual; nothing is a spike until half of them are there."""
    rewind_steps: int = Field(default=0, ge=0)
    """Back to the newest checkpoint at least so many steps before the spike, else to the oldest one that
    `checkpoint.keep_last` leaves. The paper goes back by about 100: a spike may have begun before it shows."""
    skip_steps: int = Field(default=0, ge=0)
    """Steps whose data is passed over behind the spike; what lies between checkpoint and spike always is."""
    max_rollbacks: int = Field(default=20, ge=1)
    """The run ends when it would be taken back more often."""


class PretrainConfig(StageConfig):
    """`rlhf pretrain`: causal language modelling on packed text."""

    model: PretrainModelConfig
    """The model to train."""
    data: DataConfig
    """Rows with `text`."""
    packing: Literal["concatenated", "documents", "packed"] = "concatenated"
    """`concatenated` fills every sequence with documents laid end to end; `documents` gives each a sequence of its own,
    with nothing foreign in its context: slower, but a small model of short texts learns to copy sooner; `packed` fills
    sequences with whole documents that do not see each other, each from position 0."""
    sequence_tokens: int = Field(default=256, ge=8)
    """Tokens of one training sequence; with `packing=documents` or `packed` the most it may have."""
    sequences_per_step: int = Field(default=32, ge=1)
    """Sequences of one optimizer step."""
    sequences_ramp: SequencesRamp | None = None
    """Smaller steps at the beginning; null takes full ones from the first."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one forward and backward pass."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps; the data repeats as often as needed."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products in training; `auto` is bfloat16 where the hardware has it. Weights stay float32."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_fraction=0.02, schedule="cosine"
    )
    """GPT-3 style defaults (Brown et al. 2020, appendix B)."""
    ranks: RanksConfig = RanksConfig()
    """Processes that train together."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""
    spikes: SpikeConfig | None = None
    """Taking the run back when its loss spikes; null goes on through spikes, and stops at a loss that is no number."""

    @model_validator(mode="after")
    def _ranks_agree_on_the_tokenizer(self) -> "PretrainConfig":
        if self.ranks.workers > 1 and self.model.new_tokenizer == "unigram":
            raise ValueError(
                f"model.tokenizer=unigram with ranks.workers={self.ranks.workers}: every rank would train a slightly "
                "different one; train it with `rlhf tokenizers` and give its folder as model.tokenizer"
            )
        return self

    @model_validator(mode="after")
    def _ramp_rises(self) -> "PretrainConfig":
        ramp = self.sequences_ramp
        if ramp is not None and ramp.first > self.sequences_per_step:
            raise ValueError(
                f"sequences_ramp.first={ramp.first} is more than sequences_per_step={self.sequences_per_step}; a ramp "
                "begins with fewer"
            )
        return self
