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


class PretrainConfig(StageConfig):
    """`rlhf pretrain`: causal language modelling on packed text."""

    model: PretrainModelConfig
    """The model to train."""
    data: DataConfig
    """Rows with `text`."""
    packing: Literal["concatenated", "documents"] = "concatenated"
    """`concatenated` fills every sequence with documents laid end to end; `documents` gives each a sequence of its own,
    with nothing foreign in its context: slower, but a small model of short texts learns to copy sooner."""
    sequence_tokens: int = Field(default=256, ge=8)
    """Tokens of one training sequence; with `packing=documents` the most it may have."""
    sequences_per_step: int = Field(default=32, ge=1)
    """Sequences of one optimizer step."""
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

    @model_validator(mode="after")
    def _ranks_agree_on_the_tokenizer(self) -> "PretrainConfig":
        if self.ranks.workers > 1 and self.model.new_tokenizer == "unigram":
            raise ValueError(
                f"model.tokenizer=unigram with ranks.workers={self.ranks.workers}: every rank would train a slightly "
                "different one; train it with `rlhf tokenizers` and give its folder as model.tokenizer"
            )
        return self
