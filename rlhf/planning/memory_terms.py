"""What each part of a run needs, by arithmetic: the formulas of `memory_plan` and `training_memory`.

Owns one function a term; it knows no configuration. Results are bytes unless the name says elements. Symbols: r rank of
an adapter, D hidden size, I width of the MLP, V vocabulary.
"""

from math import ceil

from policies.config import Quantization
from policies.model_shape import ModelShape

FLOAT32 = 4
"""Bytes of what trains, of moments and of logits."""
LOGITS_PER_CHUNK = 2**27
"""Largest number of logits that exist at the same time (`policies.logprobs`)."""
_MOMENTS = 2 * FLOAT32
_MASTER_RESIDUAL = 2
_PACKED_FROM_ELEMENTS = 2**17
_TILE_ROWS, _TILE_COLUMNS = 4096, 32768
_BITS = {"int8": 8, "nf4": 4}
_QUANTIZED_BLOCK = 64


def weight_bytes(shape: ModelShape, bytes_per_weight: int, quantization: Quantization) -> int:
    """The model itself; of quantized linear layers the codes, and a float32 scale for 64 of them."""
    if quantization == "none":
        return shape.parameters * bytes_per_weight
    quantized = sum(linear.elements for linear in shape.linears)
    codes = quantized * _BITS[quantization] // 8 + FLOAT32 * ceil(quantized / _QUANTIZED_BLOCK)
    return (shape.parameters - quantized) * bytes_per_weight + codes


def optimizer_bytes(elements: int, bytes_per_weight: int) -> int:
    """Adam's two moments in float32, and under bfloat16 weights the other 2 bytes of their float32 masters."""
    return elements * (_MOMENTS + (_MASTER_RESIDUAL if bytes_per_weight < FLOAT32 else 0))


def anchor_bytes(kind: str, elements: int, bytes_per_weight: int) -> int:
    """What `retention` of weights keeps: where each of them started, and with `ewc` its Fisher value."""
    return {"l2_sp": elements * bytes_per_weight, "ewc": elements * (bytes_per_weight + FLOAT32)}.get(kind, 0)


def packed_elements(shape: ModelShape, quantization: Quantization, *, keeps_weights: bool) -> int:
    """Weights that are held twice because layers are laid out anew for decoding on a CPU.

    A layer's own weight moves into its new layout, so only one of them is there twice at a time; an output layer that
    shares its weight with the embedding has a copy. Quantized layers are left as they are.

    Args:
        shape: The model's.
        quantization: Of its linear layers.
        keeps_weights: Every layer has a copy, because the adapter reads the weight itself.
    """
    linears = [linear.elements for linear in shape.linears if quantization == "none"]
    output = shape.vocabulary * shape.hidden
    moving = [max(linears, default=0), 0 if shape.output_parameters else output]
    sizes = [*linears, output] if keeps_weights else moving
    return sum(size for size in sizes if size >= _PACKED_FROM_ELEMENTS)


def cache_bytes(shape: ModelShape, tokens: int, bytes_per_number: int) -> int:
    """Keys and values of so many tokens in every layer."""
    return 2 * tokens * shape.key_value_width * shape.layers * bytes_per_number


def sampler_bytes(rows: int, vocabulary: int, bytes_per_number: int) -> int:
    """A (rows, V) step of sampling: logits and probabilities in float32, their sum over the vocabulary in float64."""
    cast = 0 if bytes_per_number == FLOAT32 else bytes_per_number
    return rows * vocabulary * (cast + 2 * FLOAT32 + 8)


def activation_bytes(
    shape: ModelShape,
    tokens: int,
    *,
    bytes_per_number: int,
    adapter_rank: int,
    probabilities: bool,
    sequence_tokens: int,
    is_checkpointed: bool,
) -> int:
    """What a forward pass over `tokens` keeps for the backward pass.

    A layer keeps the inputs and outputs of both norms (4 D), queries, keys, values and the mixed values, and of a gated
    MLP both branches, the activated one and their product (4 I; 2 I without gate); an adapter r numbers for each linear
    layer. Plain attention in bfloat16 keeps a probability for each head and earlier token. The last norm keeps 2 D.
    With checkpointing every layer keeps its input (D), and one layer at a time has the rest.
    """
    attention = 2 * shape.query_width + 2 * shape.key_value_width
    mlp = (4 if shape.is_gated else 2) * shape.intermediate
    adapters = adapter_rank * len(shape.linears) // shape.layers
    layer = 4 * shape.hidden + attention + mlp + adapters
    layer += shape.query_heads * sequence_tokens if probabilities else 0
    kept = shape.layers * shape.hidden + layer if is_checkpointed else shape.layers * layer
    return tokens * (kept + 2 * shape.hidden) * bytes_per_number


def mixed_activation_bytes(shape: ModelShape, tokens: int, *, adapter_rank: int) -> int:
    """`activation_bytes` where products run in bfloat16 on float32 weights and a float32 residual stream.

    A layer keeps the float32 inputs of both norms (2 D); in bfloat16 what every product reads (q, k, v, gate and up a
    copy each: 5 D), queries, keys, values and the mixed values, and the MLP as in `activation_bytes`.
    """
    branches = 2 if shape.is_gated else 1
    attention = 2 * shape.query_width + 2 * shape.key_value_width
    mlp = (4 if shape.is_gated else 2) * shape.intermediate
    adapters = adapter_rank * len(shape.linears) // shape.layers
    layer = 2 * shape.hidden * FLOAT32 + 2 * ((3 + branches) * shape.hidden + attention + mlp + adapters)
    return tokens * (shape.layers * layer + shape.hidden * (FLOAT32 + 2))


def tiled_logits_bytes(positions: int, shape: ModelShape, *, device: str, trains_output: bool) -> int:
    """The output layer under TRL's losses: a buffer for one tile of logits, and what is computed from it.

    The buffer has all columns of a tile, however small the vocabulary. Without Triton, about seven copies of the tile
    are there at the same time (trl 1.16, `trl.kernels.chunked_logprob`).
    """
    rows = min(positions, _TILE_ROWS)
    copies = 0 if device == "cuda" else 7 * min(shape.vocabulary, _TILE_COLUMNS)
    gradient = shape.vocabulary * shape.hidden * FLOAT32 if trains_output else 0
    return rows * (_TILE_COLUMNS + copies) * FLOAT32 + gradient


def logits_bytes(response_tokens: int, vocabulary: int, bytes_per_number: int) -> int:
    """Logits, log-probabilities and probabilities of one chunk in float32, and bfloat16 logits before their cast."""
    chunk = min(response_tokens, max(1, LOGITS_PER_CHUNK // vocabulary))
    cast = 0 if bytes_per_number == FLOAT32 else bytes_per_number
    return chunk * vocabulary * (3 * FLOAT32 + cast)


def backward_bytes(shape: ModelShape, tokens: int, bytes_per_number: int) -> int:
    """Gradients inside a layer while all activations are still there: the MLP's branches and the residual stream."""
    branches = 2 if shape.is_gated else 1
    return tokens * (branches * shape.intermediate + 2 * shape.hidden) * bytes_per_number
