"""Configuration of rollouts: how many, how long, how sampled, by which engine."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from policies.config import StrictModel


class ResponseLimits(StrictModel):
    """Where a response ends."""

    max_response_tokens: int = Field(default=64, ge=1)
    """Longest response, in tokens, the stop token included."""
    min_response_tokens: int = Field(default=0, ge=0)
    """Stop tokens are not sampled before this many tokens. Above 0, behavior log-probabilities are those of the
    policy without stop tokens there, and importance ratios of these tokens start below 1."""
    stop_token_ids: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Token ids that end a response; null means the tokenizer's end-of-sequence token."""
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a response with the token that completes one of them; looked for in its text without special
    tokens."""

    @model_validator(mode="after")
    def _minimum_fits(self) -> Self:
        if self.min_response_tokens > self.max_response_tokens:
            raise ValueError(
                f"min_response_tokens={self.min_response_tokens} exceeds "
                f"max_response_tokens={self.max_response_tokens}: lower it"
            )
        return self


class SamplingConfig(ResponseLimits):
    """How the next token is drawn. No top-k or top-p: a filtered sampler breaks the policy ratio."""

    temperature: float = Field(default=1.0, gt=0)
    """Softmax temperature; log-probabilities are taken at the same temperature everywhere."""


class HfEngineConfig(StrictModel):
    """Plain `generate` of transformers: the reference for correctness."""

    kind: Literal["hf"] = "hf"
    """Tag of this variant."""
    batch_size_responses: int = Field(default=128, ge=1)
    """Responses decoded side by side; changes speed and memory, never the samples."""
    merge_adapter: bool = True
    """While decoding, the adapter is added into a copy of the weights it adapts: faster, for the memory of that copy.
    Only float32 weights are merged, because others would lose precision."""


class CompiledEngineConfig(StrictModel):
    """Decoding in slots: a finished response makes room at once, so lengths may differ at no cost."""

    kind: Literal["compiled"] = "compiled"
    """Tag of this variant."""
    slots: int = Field(default=128, ge=1)
    """Responses decoded side by side, in all threads together; changes speed and memory, never the samples."""
    prefill_tokens: int = Field(default=1024, ge=1)
    """Padded prompt tokens that are read in one pass; a longer prompt has a pass of its own. More is slower on a CPU,
    whose caches then hold a layer's activations no more, and may be faster on a GPU."""
    merge_adapter: bool = True
    """While decoding, the adapter is added into a copy of the weights it adapts: faster, for the memory of that copy.
    Only float32 weights are merged, because others would lose precision."""


class VllmEngineConfig(StrictModel):
    """vLLM, from the extra `vllm`, with a model of its own: for `placement.kind=split`."""

    kind: Literal["vllm"] = "vllm"
    """Tag of this variant."""
    batch_size_responses: int = Field(default=256, ge=1)
    """Responses decoded side by side; changes speed and memory, never the samples."""
    gpu_memory_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the GPU's memory for weights, keys and values; on a CPU the environment variable
    VLLM_CPU_KVCACHE_SPACE (GiB) decides."""
    compile: bool = False
    """Compile the model when it loads: a minute more at the start, faster steps."""


EngineConfig = Annotated[CompiledEngineConfig | HfEngineConfig | VllmEngineConfig, Field(discriminator="kind")]


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
    engine: EngineConfig = CompiledEngineConfig()
    """Which engine decodes."""
    responses_per_call: int = Field(default=512, ge=1)
    """Most responses that a worker is asked for at once. Whoever has finished takes the next call, so that a slow
    worker holds nobody up; calls much smaller than what the engine decodes side by side cost speed."""
    calls_in_flight: int = Field(default=1, ge=1)
    """Calls that a worker has been given and not answered, at most; 2 hides the driver's latency behind short calls."""
    timeout_seconds: float = Field(default=600.0, gt=0)
    """Longest time that a worker may work on one call before it is taken for hung, and replaced."""
    max_worker_restarts: int = Field(default=3, ge=0)
    """Times in a row that one worker may be lost and replaced without finishing a call; one more stops the run. A new
    worker gets the present weights and does the lost work again, with the same result. Read with
    `placement.kind=split`: elsewhere the learner lives in the same process and is lost, too."""
    max_policy_age: int = Field(default=0, ge=0)
    """Updates by which generation runs ahead: step k learns from samples of the policy after update k - max_policy_age,
    drawn while the learner was busy. 0 alternates. More needs `placement.kind=split` and `algorithm.importance_cap`,
    and keeps a copy of what trains in the object store for every version that workers still need."""
    sync_bucket_mib: int = Field(default=256, ge=1)
    """Weights travel to the workers in parts of this many MiB, so that neither side holds a second copy of them all."""
