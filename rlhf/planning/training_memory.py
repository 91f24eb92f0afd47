"""How much memory pretraining, fine-tuning, DPO and reward training will need, by arithmetic: nothing is loaded.

Owns the terms of a stage that has one model and one optimizer. Formulas that PPO has, too, are `memory_terms`; how the
numbers are shown is `command`. Every row is taken at its longest, so data that is shorter needs less.
"""

from dataclasses import dataclass
from math import ceil

import torch

from policies.config import ArchitectureConfig, FullTuning, LoraTuning
from policies.model_shape import LinearShape, ModelShape, adapter_parameters, model_shape
from policies.sources import resolve_source
from rlhf.compute_precision import ComputeDtype, resolve_compute_dtype
from rlhf.config import DpoConfig, PretrainConfig, RewardConfig, SftConfig
from rlhf.planning.adapter_sizes import adapter_elements, frozen_elements
from rlhf.planning.memory_plan import LIBRARIES, LONGEST_PLAIN_ATTENTION, ActorMemory, Device
from rlhf.planning.memory_terms import (
    FLOAT32,
    activation_bytes,
    anchor_bytes,
    backward_bytes,
    logits_bytes,
    mixed_activation_bytes,
    optimizer_bytes,
    tiled_logits_bytes,
    weight_bytes,
)

TrainingConfig = PretrainConfig | SftConfig | DpoConfig | RewardConfig


@dataclass(frozen=True, slots=True)
class LargestPass:
    """The pass with gradients that needs most.

    Attributes:
        tokens: Tokens of its rows.
        row_tokens: Tokens of its longest row.
        accumulates: Whether gradients of a pass before it are there.
        is_mixed: Whether matrix products run in bfloat16 on float32 weights.
        probability_bytes: Of attention probabilities that are kept, for each head and pair of tokens.
        logits: Bytes that the output layer needs for a moment.
    """

    tokens: int
    row_tokens: int
    accumulates: bool
    is_mixed: bool
    probability_bytes: int
    logits: int


def training_memory(config: TrainingConfig, device: Device) -> ActorMemory:
    """The memory of the process that trains, or of each rank.

    Raises:
        ValueError: the model cannot be found, or does not say its sizes.
    """
    shape, started = _shape_of(config)
    tuning = FullTuning() if isinstance(config, PretrainConfig) else config.model.tuning
    is_full = isinstance(tuning, FullTuning)
    in_use = shape.parameters - (shape.output_parameters if isinstance(config, RewardConfig) else 0)
    adapter = 0 if is_full else started or adapter_elements(shape, tuning)
    trained = in_use if is_full else adapter
    is_half = not isinstance(config, PretrainConfig) and config.model.dtype == "bfloat16"
    b = 2 if is_half else FLOAT32
    largest = _largest_pass(config, shape, device, b)
    rank = tuning.rank if isinstance(tuning, LoraTuning) else 0
    bytes_of_trained = b if is_full else FLOAT32
    quantization = "none" if isinstance(config, PretrainConfig) else config.model.quantization
    resident = {
        "base weights": weight_bytes(shape, b, quantization) - (shape.parameters - in_use) * b,
        "adapters": 0 if is_full else FLOAT32 * (adapter + started + frozen_elements(shape, tuning)),
        "optimizer": optimizer_bytes(trained, bytes_of_trained),
        "retention": _retained(config, shape.parameters * b, trained, bytes_of_trained),
    }
    update = {
        "gradients": trained * FLOAT32 if largest.accumulates else 0,
        "activations": _activations(shape, largest, b, rank),
        "bfloat16 weights": 2 * in_use if largest.is_mixed else 0,
        "logits or last layer": max(
            largest.logits, backward_bytes(shape, largest.tokens, 2 if largest.is_mixed else b)
        ),
    }
    phases = {"update": {k: v for k, v in update.items() if v}, "optimizer step": {"gradients": trained * FLOAT32}}
    return ActorMemory(
        "each rank" if _ranks_of(config) > 1 else "this process",
        (),
        device,
        {name: size for name, size in resident.items() if size},
        phases,
        {"libraries": LIBRARIES},
    )


def _retained(config: TrainingConfig, model: int, trained: int, bytes_of_trained: int) -> int:
    """What is kept of the old model: a copy of it for a KL under full tuning, where weights started, Fisher values."""
    if not isinstance(config, SftConfig):
        return 0
    if config.retention.kind == "kl":
        return model if isinstance(config.model.tuning, FullTuning) else 0
    return anchor_bytes(config.retention.kind, trained, bytes_of_trained)


def _largest_pass(config: TrainingConfig, shape: ModelShape, device: Device, bytes_per_weight: int) -> LargestPass:
    if isinstance(config, SftConfig | DpoConfig):
        return _pass_of_trl(config, shape, device)
    longest = config.sequence_tokens if isinstance(config, PretrainConfig) else config.max_tokens
    row = min(longest, shape.context_tokens)
    is_bfloat16 = _computes_in_bfloat16(config.compute_dtype, device)
    is_mixed = is_bfloat16 and bytes_per_weight == FLOAT32
    keeps = device == "cpu" and is_bfloat16 and row <= LONGEST_PLAIN_ATTENTION
    if isinstance(config, PretrainConfig):
        of_rank = ceil(config.sequences_per_step / config.ranks.workers)
        rows = min(max(1, config.micro_batch_tokens // row), of_rank)
        logits = logits_bytes(rows * (row - 1), shape.vocabulary, 2 if is_mixed else FLOAT32)
        return LargestPass(rows * row, row, rows < of_rank, is_mixed, 2 * keeps, logits)
    tokens = min(config.micro_batch_tokens, ceil(config.comparisons_per_step / config.ranks.workers) * 2 * row)
    return LargestPass(tokens, row, accumulates=True, is_mixed=is_mixed, probability_bytes=2 * keeps, logits=0)


def _pass_of_trl(config: SftConfig | DpoConfig, shape: ModelShape, device: Device) -> LargestPass:
    row = min(config.max_tokens, shape.context_tokens)
    if isinstance(config, SftConfig):
        rows, accumulates = config.micro_batch_examples, config.micro_batch_examples < config.examples_per_step
    else:
        rows, accumulates = 2 * config.micro_batch_pairs, config.micro_batch_pairs < config.pairs_per_step
    is_mixed = device == "cuda" and config.model.dtype == "float32"
    is_full = isinstance(config.model.tuning, FullTuning)
    logits = tiled_logits_bytes(rows * (row - 1), shape, device=device, trains_output=is_full)
    return LargestPass(rows * row, row, accumulates, is_mixed, 0, logits)


def _activations(shape: ModelShape, largest: LargestPass, bytes_per_number: int, rank: int) -> int:
    if largest.is_mixed:
        kept = mixed_activation_bytes(shape, largest.tokens, adapter_rank=rank)
    else:
        kept = activation_bytes(
            shape,
            largest.tokens,
            bytes_per_number=bytes_per_number,
            adapter_rank=rank,
            probabilities=False,
            sequence_tokens=largest.row_tokens,
            is_checkpointed=False,
        )
    pairs = largest.tokens * largest.row_tokens * shape.query_heads * shape.layers
    return kept + pairs * largest.probability_bytes


def _shape_of(config: TrainingConfig) -> tuple[ModelShape, int]:
    """The model's sizes, and the weights of the adapter that it comes with."""
    if isinstance(config, PretrainConfig) and config.model.architecture is not None:
        vocabulary = config.model.vocabulary_size
        if vocabulary is None:
            raise ValueError("the vocabulary of model.tokenizer is not known before it is loaded")
        return _new_shape(config.model.architecture, vocabulary), 0
    assert config.model.path is not None, "the configuration has checked that there is a path or an architecture"
    source = resolve_source(config.model.path)
    return model_shape(source.base), 0 if source.adapter is None else adapter_parameters(source.adapter)


def _new_shape(architecture: ArchitectureConfig, vocabulary: int) -> ModelShape:
    """Of the Llama that `policies.loading.random_backbone` builds."""
    hidden, heads, inner = architecture.hidden_size, architecture.heads, architecture.mlp_width
    width = (architecture.key_value_heads or heads) * (hidden // heads)
    layer = (
        LinearShape("q_proj", hidden, hidden),
        LinearShape("k_proj", width, hidden),
        LinearShape("v_proj", width, hidden),
        LinearShape("o_proj", hidden, hidden),
        LinearShape("gate_proj", inner, hidden),
        LinearShape("up_proj", inner, hidden),
        LinearShape("down_proj", hidden, inner),
    )
    linears = architecture.layers * layer
    output = 0 if architecture.tie_embeddings else vocabulary * hidden
    norms = (2 * architecture.layers + 1) * hidden
    return ModelShape(
        parameters=sum(linear.elements for linear in linears) + vocabulary * hidden + output + norms,
        linears=linears,
        output_parameters=output,
        vocabulary=vocabulary,
        hidden=hidden,
        layers=architecture.layers,
        query_width=hidden,
        key_value_width=width,
        intermediate=inner,
        is_gated=True,
        query_heads=heads,
        context_tokens=architecture.context_tokens,
    )


def _computes_in_bfloat16(choice: ComputeDtype, device: Device) -> bool:
    # A GPU may be elsewhere; all that are worth training on have it.
    is_there = device == "cuda" or resolve_compute_dtype(choice, torch.device("cpu")) == torch.bfloat16
    return is_there and choice != "float32"


def _ranks_of(config: TrainingConfig) -> int:
    return 1 if isinstance(config, DpoConfig) else config.ranks.workers
