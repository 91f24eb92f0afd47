"""Configuration of models: where they come from, their precision, and what of them trains.

Owns `StrictModel`, the base of every configuration class of the project, because every package may import from here.
Imports nothing heavy.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StrictModel(BaseModel):
    """Base of every configuration class: frozen, unknown keys refused, docstrings are the descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class FullTuning(StrictModel):
    """Every weight of the backbone trains."""

    kind: Literal["full"] = "full"
    """Tag of this variant."""


Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
"""Indices of decoder layers, the first being 0."""
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
"""Ends of module names, such as `q_proj` or `mlp.down_proj`."""


class LoraTuning(StrictModel):
    """Low-rank adapters train, the backbone is frozen (Hu et al. 2021). No dropout: ratios need a fixed policy."""

    kind: Literal["lora"] = "lora"
    """Tag of this variant."""
    rank: int = Field(default=16, ge=1)
    """Rank r of each update B A."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank (rslora: by alpha / sqrt(rank))."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names to adapt; "all-linear" is every linear layer except the output layer."""
    layers: Layers | None = None
    """Decoder layers that are adapted; null is all of them."""
    variant: Literal["plain", "rslora", "dora", "pissa"] = "plain"
    """`rslora` scales by alpha / sqrt(rank) (Kalajdzievski 2023); `dora` trains the norms of the weights, too (Liu et
    al. 2024); `pissa` starts from the principal components of the weights (Meng et al. 2024)."""
    embeddings: bool = False
    """The input embedding is adapted, too, by r (vocabulary + hidden size) weights: for tasks that single words decide,
    on a base that knows little of them. `plain` and `rslora` only."""

    @model_validator(mode="after")
    def _embeddings_of_plain_updates(self) -> Self:
        if self.embeddings and self.variant not in ("plain", "rslora"):
            raise ValueError(
                f"embeddings=true with variant={self.variant}: embeddings are adapted by plain updates only; set "
                "variant=plain or rslora, or embeddings=false"
            )
        return self


class Ia3Tuning(StrictModel):
    """Factors on keys, values and the inner activations of the feed-forward layers train (Liu et al. 2022, IA3)."""

    kind: Literal["ia3"] = "ia3"
    """Tag of this variant."""
    target_modules: Names | None = None
    """Module names whose output is scaled; null takes PEFT's choice for the architecture."""
    feed_forward_modules: Names | None = None
    """Those of `target_modules` whose input is scaled instead; given exactly where `target_modules` is."""
    layers: Layers | None = None
    """Decoder layers that are adapted; null is all of them."""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if (self.target_modules is None) != (self.feed_forward_modules is None):
            raise ValueError(
                "tuning.kind=ia3: target_modules and feed_forward_modules belong together; set both, or neither"
            )
        return self


class BottleneckTuning(StrictModel):
    """Small networks up(f(down(x))) beside or behind the sub-layers of a frozen decoder train."""

    kind: Literal["bottleneck"] = "bottleneck"
    """Tag of this variant."""
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby"
    """`houlsby`: behind attention and feed-forward (Houlsby et al. 2019); `pfeiffer`: behind feed-forward alone
    (Pfeiffer et al. 2021); `parallel`: beside feed-forward, from its input (He et al. 2022)."""
    size: int = Field(default=16, ge=1)
    """Width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """The function f."""
    scale: float = Field(default=1.0, gt=0)
    """Factor of what the adapter adds; He et al. take 4 with `parallel`."""
    target_modules: Names | None = None
    """Modules that are adapted; null finds those of the placement by the names that decoders give them."""
    layers: Layers | None = None
    """Decoder layers that are adapted; null is all of them."""


class BitFitTuning(StrictModel):
    """The bias terms train, and nothing else (Ben Zaken et al. 2022)."""

    kind: Literal["bitfit"] = "bitfit"
    """Tag of this variant."""
    target_modules: Names | None = None
    """Modules whose bias trains; null is every linear layer and norm of the body that has one."""
    layers: Layers | None = None
    """Decoder layers whose biases train; null is all of them, and what stands outside of layers."""
    add_missing: bool = False
    """Linear layers without a bias get one that starts at 0, as in LLaMA-Adapter V2 (Gao et al. 2023, section 3.1).
    Without it, a model that has no biases, such as Llama, is refused."""


class PrefixTuning(StrictModel):
    """Keys and values of virtual tokens before every sequence train, in every layer (Li and Liang 2021)."""

    kind: Literal["prefix"] = "prefix"
    """Tag of this variant."""
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens; they take as many of the model's context."""
    projection_size: int = Field(default=128, ge=1)
    """Width of the two-layer network that computes keys and values from an embedding of each virtual token."""


class PTuningV2(StrictModel):
    """Like `prefix`, keys and values themselves being what trains (Liu et al. 2021, P-tuning v2)."""

    kind: Literal["p_tuning_v2"] = "p_tuning_v2"
    """Tag of this variant."""
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens; they take as many of the model's context."""


class PromptTuning(StrictModel):
    """Embeddings of virtual tokens before every sequence train (Lester et al. 2021)."""

    kind: Literal["prompt"] = "prompt"
    """Tag of this variant."""
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens; they take as many of the model's context."""
    initial_text: str | None = Field(default=None, min_length=1)
    """Text whose embeddings they start from, repeated or cut to `virtual_tokens`; null draws random words."""


class PTuning(StrictModel):
    """Like `prompt`, with a network that computes the embeddings, and trains with them (Liu et al. 2021, P-tuning)."""

    kind: Literal["p_tuning"] = "p_tuning"
    """Tag of this variant."""
    virtual_tokens: int = Field(default=20, ge=1)
    """Virtual tokens; they take as many of the model's context."""
    encoder: Literal["mlp", "lstm"] = "lstm"
    """The network: a bidirectional LSTM of two layers with an MLP on it, or an MLP of three layers."""
    encoder_size: int = Field(default=128, ge=1)
    """Width of the network."""


class MixAndMatchTuning(StrictModel):
    """A short prefix in attention and a parallel adapter beside feed-forward (He et al. 2022, MAM adapter)."""

    kind: Literal["mix_and_match"] = "mix_and_match"
    """Tag of this variant."""
    virtual_tokens: int = Field(default=10, ge=1)
    """Virtual tokens of the prefix; they take as many of the model's context."""
    size: int = Field(default=16, ge=1)
    """Width of the parallel adapter."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """The adapter's activation function."""
    scale: float = Field(default=4.0, gt=0)
    """Factor of what the adapter adds."""
    target_modules: Names | None = None
    """The feed-forward modules; null finds them by the names that decoders give them."""


class HeadTuning(StrictModel):
    """The output layer alone trains, on a frozen body. One that is tied to the input embedding is untied first."""

    kind: Literal["head"] = "head"
    """Tag of this variant."""


TokenizerKind = Literal["bpe", "wordpiece", "unigram"]
"""How a new tokenizer cuts text (`policies.tokenizer_models`)."""

Quantization = Literal["none", "int8", "nf4"]

VirtualTokenTuning = PrefixTuning | PTuningV2 | PromptTuning | PTuning
"""Methods whose adapter is nothing but virtual tokens."""
AdapterTuning = (
    LoraTuning | Ia3Tuning | BottleneckTuning | BitFitTuning | VirtualTokenTuning | MixAndMatchTuning | HeadTuning
)
"""Methods that leave the backbone as it is: switched off, they are the base."""


def virtual_tokens_of(tuning: FullTuning | AdapterTuning) -> int:
    """Virtual tokens that a method puts before every row; 0 for most."""
    return tuning.virtual_tokens if isinstance(tuning, VirtualTokenTuning | MixAndMatchTuning) else 0


Tuning = Annotated[FullTuning | AdapterTuning, Field(discriminator="kind")]


class ModelConfig(StrictModel):
    """A pretrained model, local or from a hub, and how it is tuned."""

    path: str
    """Folder of a Hugging Face model or of a PEFT adapter, or a hub name."""
    tuning: Tuning = FullTuning()
    """What trains: all weights, or an adapter on the frozen model."""
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

    @property
    def mlp_width(self) -> int:
        """`intermediate_size`, with what null stands for."""
        return self.intermediate_size or -(-8 * self.hidden_size // 96) * 32


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
