"""Configuration of rollouts: how many, how long, how sampled, by which engine."""

from typing import Literal

from pydantic import Field, model_validator

from policies.config import StrictModel


class SamplingConfig(StrictModel):
    """How the next token is drawn. No top-k or top-p: a filtered sampler breaks the policy ratio."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature; log-probabilities are taken at the same temperature everywhere."""
    max_response_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens, the stop token included."""
    min_response_tokens: int = Field(default=0, ge=0)
    """Stop tokens are not sampled before this many tokens. Above 0, behavior log-probabilities are those of the
    policy without stop tokens there, and importance ratios of these tokens start below 1."""
    stop_token_ids: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Token ids that end a response; null means the tokenizer's end-of-sequence token."""

    @model_validator(mode="after")
    def _minimum_fits(self) -> "SamplingConfig":
        if self.min_response_tokens > self.max_response_tokens:
            raise ValueError(
                f"min_response_tokens={self.min_response_tokens} exceeds "
                f"max_response_tokens={self.max_response_tokens}: lower it"
            )
        return self


class HfEngineConfig(StrictModel):
    """Plain `generate` of transformers: the reference for correctness."""

    kind: Literal["hf"] = "hf"
    """Tag of this variant."""
    batch_size_responses: int = Field(default=128, ge=1)
    """Responses decoded side by side; changes speed and memory, never the samples."""
    merge_adapter: bool = True
    """While decoding, the adapter is added into a copy of the weights it adapts: faster, for the memory of that copy.
    Only float32 weights are merged, because others would lose precision."""


EngineConfig = HfEngineConfig


class RolloutConfig(StrictModel):
    """One rollout phase of a PPO step."""

    prompts_per_step: int = Field(default=32, ge=1)
    """N, prompts taken from the stream in one step."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """G, responses sampled for each prompt."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A longer prompt is an error that names it (see `data.on_bad_row`)."""
    sampling: SamplingConfig = SamplingConfig()
    """How responses are drawn."""
    engine: EngineConfig = HfEngineConfig()
    """Which engine decodes."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest wait for one rollout before the worker is declared hung."""
