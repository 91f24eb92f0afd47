"""Configuration of models: where they come from, their precision, and what of them trains.

Owns `StrictModel`, the base of every configuration class of the project, because every package may import from here.
Imports nothing heavy.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class StrictModel(BaseModel):
    """Base of every configuration class: frozen, unknown keys refused, docstrings are the descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class FullTuning(StrictModel):
    """Every weight of the backbone trains."""

    kind: Literal["full"] = "full"
    """Tag of this variant."""


class LoraTuning(StrictModel):
    """Low-rank adapters train, the backbone is frozen (Hu et al. 2021). No dropout: ratios need a fixed policy."""

    kind: Literal["lora"] = "lora"
    """Tag of this variant."""
    rank: int = Field(default=16, ge=1)
    """Rank r of each update B A."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names to adapt; "all-linear" is every linear layer except the output layer."""


TokenizerKind = Literal["bpe", "wordpiece", "unigram"]
"""How a new tokenizer cuts text (`policies.tokenizer_models`)."""

Quantization = Literal["none", "int8", "nf4"]

Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="kind")]


class ModelConfig(StrictModel):
    """A pretrained model, local or from a hub, and how it is tuned."""

    path: str
    """Folder of a Hugging Face model or of a PEFT adapter, or a hub name."""
    tuning: Tuning = FullTuning()
    """What trains: `full` or `lora`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the backbone's weights; what trains is kept in float32."""
    quantization: Quantization = "none"
    """How the frozen linear layers under LoRA are held (QLoRA): `int8` takes a quarter of float32's memory, `nf4`, of 4
    bits, an eighth. Needs `pip install rlhf[quantized]`; adapters belong to the format that they were trained on."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto` takes the GPU that the process sees, else the CPU."""
    eos_token: str | None = None
    """Overrides the tokenizer's end-of-sequence token (a token that exists); null keeps the tokenizer's own."""
    pad_token: str | None = None
    """Overrides the tokenizer's padding token (a token that exists); null keeps the tokenizer's own."""
    chat_template: str | None = None
    """Jinja chat template for conversational data; null keeps the tokenizer's own, else a plain built-in one."""


class ArchitectureConfig(StrictModel):
    """Shape of a Llama-style decoder that starts from random weights."""

    hidden_size: int = Field(default=128, ge=8)
    """D, width of the residual stream."""
    layers: int = Field(default=4, ge=1)
    """Number of decoder layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; must divide hidden_size."""
    key_value_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values; null means as many as `heads`."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width of the gated MLP; null means 8/3 of hidden_size, rounded up to a multiple of 32."""
    context_tokens: int = Field(default=256, ge=8)
    """Longest sequence, in tokens."""
    initial_std: float = Field(default=0.02, gt=0)
    """Standard deviation of the random initial weights; a narrow, shallow model learns to copy sooner from 0.05."""
    tie_embeddings: bool = True
    """Input embedding and output layer share weights."""


class EncoderDecoderArchitecture(StrictModel):
    """Shape of a T5-like encoder-decoder that starts from random weights."""

    hidden_size: int = Field(default=128, ge=8)
    """D, width of the residual stream."""
    layers: int = Field(default=2, ge=1)
    """Layers of the encoder, and as many of the decoder."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; must divide hidden_size."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width of the gated MLP; null means twice hidden_size."""
    context_tokens: int = Field(default=256, ge=8)
    """Longest input or target, in tokens; positions are relative, so nothing in the model depends on it."""
