"""Configuration of `rlhf tokenizers`: which tokenizers are compared, on which text, and by which small model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from policies.config import ArchitectureConfig, StrictModel, TokenizerKind
from rlhf.config.shared import OptimizerConfig


class NewTokenizer(StrictModel):
    """A byte-level tokenizer trained on `data.train`."""

    kind: TokenizerKind
    """How it cuts text; tag of this variant."""
    vocabulary_size: int = Field(ge=260)
    """Most tokens it may have; `wordpiece` needs 520."""

    @property
    def name(self) -> str:
        """Name in tables and of its folder."""
        return f"{self.kind}-{self.vocabulary_size}"


class ExistingTokenizer(StrictModel):
    """The tokenizer of a model that exists; it was trained on other text, which the comparison shows."""

    kind: Literal["path"] = "path"
    """Tag of this variant."""
    path: str
    """Folder of a model, or of a tokenizer alone."""

    @property
    def name(self) -> str:
        """Name in tables: the last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]


ComparedTokenizer = Annotated[NewTokenizer | ExistingTokenizer, Field(discriminator="kind")]


class TokenizersDataConfig(StrictModel):
    """The text on which tokenizers, and small models, are trained and measured."""

    train: str
    """Rows with `text`: a local JSON(L)(.gz), Parquet or CSV file, a hub name, or `quickstart/<set>`; slices as in
    `[:50%]`."""
    eval: str
    """Held-out rows with `text`."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class TrialConfig(StrictModel):
    """A small model from random weights, trained on the same pieces of text, in the same order, with each tokenizer."""

    architecture: ArchitectureConfig = ArchitectureConfig(hidden_size=64, layers=2, heads=4, context_tokens=256)
    """Shape of the model; the embeddings grow with the vocabulary."""
    piece_bytes: int = Field(default=200, ge=16)
    """Documents are cut after words into pieces of at most so many bytes, which any byte-level tokenizer fits into the
    context."""
    pieces_per_step: int = Field(default=32, ge=1)
    """Pieces of one optimizer step."""
    steps: int = Field(default=200, ge=1)
    """Optimizer steps; the text repeats as often as needed."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=3e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_fraction=0.05, schedule="cosine"
    )
    """Optimizer, the same for all."""

    @model_validator(mode="after")
    def _pieces_fit(self) -> "TrialConfig":
        # Beginning and end of sequence stand beside the bytes.
        if self.piece_bytes + 2 > self.architecture.context_tokens:
            raise ValueError(
                f"piece_bytes={self.piece_bytes} leaves no room for two special tokens in architecture.context_tokens="
                f"{self.architecture.context_tokens}; lower it, or raise context_tokens"
            )
        return self


class TokenizersConfig(StrictModel):
    """`rlhf tokenizers`: trains and compares tokenizers."""

    run_dir: str
    """Folder of this run; refused when it already holds one."""
    data: TokenizersDataConfig
    """Text."""
    tokenizers: tuple[ComparedTokenizer, ...] = Field(min_length=1)
    """What is compared."""
    trial: TrialConfig | None = TrialConfig()
    """The loss per byte of a small model; null leaves it out."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the small model; `auto` takes the GPU that the process sees, else the CPU."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights and order."""

    @model_validator(mode="after")
    def _names_differ(self) -> "TokenizersConfig":
        names = [tokenizer.name for tokenizer in self.tokenizers]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"tokenizers: {', '.join(twice)} stands there twice; keep one of each")
        return self
