"""Configuration of what uses a finished model: `rlhf generate`, `chat`, `export`."""

from typing import Literal

from pydantic import Field

from policies.config import ModelConfig, StrictModel
from rlhf.config.shared import StageConfig
from rollout.config import SamplingConfig


class GenerateDataConfig(StrictModel):
    """Prompts to answer."""

    eval: str
    """Rows with `prompt`."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class GenerateConfig(StageConfig):
    """`rlhf generate`: answers to a file of prompts, printed and written to samples.jsonl."""

    model: ModelConfig
    """The model that answers."""
    data: GenerateDataConfig
    """Prompts."""
    sampling: SamplingConfig = SamplingConfig()
    """How it answers."""
    prompts: int | None = Field(default=None, ge=1)
    """How many prompts, from the first; null takes all."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Responses to each."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A longer prompt is a bad row."""


class ChatConfig(StrictModel):
    """`rlhf chat`: talk to a model in the terminal."""

    model: ModelConfig
    """The model that answers."""
    sampling: SamplingConfig = SamplingConfig()
    """How it answers."""
    system: str | None = None
    """System message of a conversation; null for none."""
    conversational: bool = True
    """True renders turns with the chat template; false sends each line as a plain prompt."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling."""


class ExportConfig(StrictModel):
    """`rlhf export`: a plain Hugging Face folder from a model with an adapter."""

    model: ModelConfig
    """Folder of the adapter (or model) to export."""
    run_dir: str
    """Folder to write; refused when it exists and is not empty."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference of a logit before and after merging; above it nothing is written."""
