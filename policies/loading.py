"""The single way to load a causal language model: a folder, a hub name or random weights -> a `Backbone`.

Owns devices, precision, and which adapter a loaded model trains or answers with.
"""

import logging
from typing import cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from policies.adapters import AdapterSet
from policies.backbone import Backbone
from policies.config import AdapterTuning, ArchitectureConfig, FullTuning, ModelConfig, Tuning
from policies.peft_configs import peft_type_of
from policies.quantization import quantize_linears
from policies.sources import resolve_source, unreachable
from policies.tokenization import load_tokenizer

POLICY_ADAPTER = "policy"
REFERENCE_ADAPTER = "reference"

logger = logging.getLogger(__name__)


class EncoderDecoderError(ValueError):
    """A model that reads an input and writes a target, where a decoder is needed."""


def load_backbone(config: ModelConfig, *, device: torch.device | str | None = None) -> Backbone:
    """Loads model, tokenizer and, where `path` holds an adapter, that adapter on its base.

    An adapter is loaded twice: as "policy", and as a frozen copy "reference" that later training leaves alone.

    Args:
        config: which model, in which precision.
        device: overrides `config.device`, for actors that are told where to live.

    Raises:
        ValueError: if the model, its tokenizer or an adapter's base is missing or does not fit.
    """
    source = resolve_source(config.path)
    where = resolve_device(config.device) if device is None else device
    model = _load_model(source.base, config)
    if config.quantization != "none":
        quantize_linears(cast(nn.Module, model.base_model), config.quantization, where)
    _move(model, where)
    backbone = Backbone(model, load_tokenizer(config))
    if source.adapter is not None:
        backbone.adapters.load(POLICY_ADAPTER, source.adapter)
        backbone.adapters.copy(POLICY_ADAPTER, REFERENCE_ADAPTER)
    return backbone


def random_backbone(
    architecture: ArchitectureConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> Backbone:
    """A Llama-style decoder (Touvron et al. 2023) with random weights, the same on every device for the same seed.

    Raises:
        ValueError: if the heads do not divide the hidden size into even parts, or the key-value heads do not divide
            the heads.
    """
    config = _llama_config(architecture, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cast(PreTrainedModel, AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    _move(model, device)
    return Backbone(model, tokenizer)


def prepare_policy(backbone: Backbone, tuning: Tuning, *, seed: int) -> str | None:
    """The adapter that trains as the policy, added if there is none yet; None where the model itself trains.

    Raises:
        ValueError: if the model came with an adapter, and the model itself is to train, or another method.
    """
    return prepare_adapter(backbone.adapters, tuning, seed=seed)


def prepare_adapter(adapters: AdapterSet, tuning: Tuning, *, seed: int) -> str | None:
    """`prepare_policy` of the adapters on any model."""
    if POLICY_ADAPTER in adapters.names:
        if isinstance(tuning, FullTuning):
            raise ValueError(
                "model.tuning.kind=full: model.path holds an adapter, and full tuning would leave it out; set "
                "model.tuning.kind to the adapter's (such as lora) to go on training it, or `rlhf export` it first"
            )
        _require_same_method(adapters, tuning)
        logger.info("training continues the adapter of model.path; its shape stays (rank and alpha, ...)")
        return POLICY_ADAPTER
    if isinstance(tuning, FullTuning):
        return None
    adapters.add(POLICY_ADAPTER, tuning, seed=seed)
    return POLICY_ADAPTER


def _require_same_method(adapters: AdapterSet, tuning: AdapterTuning) -> None:
    found, wanted = adapters.kind(POLICY_ADAPTER), peft_type_of(tuning)
    if found != wanted:
        raise ValueError(
            f"model.tuning.kind={tuning.kind}: model.path holds an adapter of PEFT's type {found}, not {wanted}; set "
            "the kind that it was trained with, or `rlhf export` it first"
        )


def policy_adapter(backbone: Backbone) -> str | None:
    """The adapter that a loaded model answers with: "policy" if `path` held one, else None."""
    return POLICY_ADAPTER if POLICY_ADAPTER in backbone.adapters.names else None


def resolve_device(device: str) -> torch.device:
    """The device a config means; "auto" is the GPU that the process sees, else the CPU.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("model.device=cuda: this process sees no GPU; set model.device=cpu, or give the actor a GPU")
    return torch.device("cuda" if device != "cpu" and available else "cpu")


def _load_model(path: str, config: ModelConfig) -> PreTrainedModel:
    try:
        settings = _without_dropout(AutoConfig.from_pretrained(path))
        if settings.is_encoder_decoder:
            raise EncoderDecoderError(
                f"model.path={path!r} holds an encoder-decoder; PPO and the other stages take decoders: use it with "
                "`rlhf text-to-text` and `rlhf generate`, or name a decoder"
            )
        return AutoModelForCausalLM.from_pretrained(
            path, config=settings, dtype=getattr(torch, config.dtype), attn_implementation=config.attention
        )
    except EncoderDecoderError:
        raise
    except (OSError, ValueError, ImportError) as error:
        raise unreachable(path, error) from error


def _move(model: nn.Module, device: torch.device | str) -> None:
    model.to(device)


def _without_dropout(config: PreTrainedConfig) -> PreTrainedConfig:
    """Sets every dropout rate to 0, because a trainer may put the model into train mode; ratios need a fixed policy."""
    for name, value in vars(config).items():
        if isinstance(value, float) and name.endswith(("dropout", "pdrop")):
            setattr(config, name, 0.0)
    return config


def _llama_config(architecture: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    hidden, heads = architecture.hidden_size, architecture.heads
    key_value_heads = architecture.key_value_heads or heads
    if hidden % (2 * heads):
        raise ValueError(f"architecture.heads={heads} must divide hidden_size={hidden} into heads of even width")
    if heads % key_value_heads:
        raise ValueError(f"architecture.key_value_heads={key_value_heads} must divide heads={heads}")
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=architecture.mlp_width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=architecture.context_tokens,
        initializer_range=architecture.initial_std,
        tie_word_embeddings=architecture.tie_embeddings,
        bos_token_id=cast(int | None, tokenizer.bos_token_id),
        eos_token_id=cast(int, tokenizer.eos_token_id),
        pad_token_id=cast(int, tokenizer.pad_token_id),
    )
