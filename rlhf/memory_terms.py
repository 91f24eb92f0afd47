"""What each part of a PPO run needs, by arithmetic on the sizes of a model: the formulas of `rlhf.memory_plan`.

Owns one function a term; it knows no configuration. Results are bytes unless the name says
elements. Symbols: r rank of an adapter, D hidden size, I width of the MLP, V vocabulary.
"""

from policies.model_shape import ModelShape

FLOAT32 = 4
"""Bytes of what trains, of moments and of logits."""
LOGITS_PER_CHUNK = 2**27
"""Largest number of logits that exist at the same time (`policies.logprobs`)."""
_MOMENTS = 2 * FLOAT32
_MASTER_RESIDUAL = 2
_PACKED_FROM_ELEMENTS = 2**17


def optimizer_bytes(elements: int, bytes_per_weight: int) -> int:
    """Adam's two moments in float32, and under bfloat16 weights the other 2 bytes of their float32 masters."""
    return elements * (_MOMENTS + (_MASTER_RESIDUAL if bytes_per_weight < FLOAT32 else 0))


def packed_elements(shape: ModelShape) -> int:
    """Weights of the linear layers that are laid out anew for decoding on a CPU, the output layer among them."""
    output = shape.vocabulary * shape.hidden
    sizes = [*(linear.elements for linear in shape.linears), output]
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


def logits_bytes(response_tokens: int, vocabulary: int, bytes_per_number: int) -> int:
    """Logits, log-probabilities and probabilities of one chunk in float32, and bfloat16 logits before their cast."""
    chunk = min(response_tokens, max(1, LOGITS_PER_CHUNK // vocabulary))
    cast = 0 if bytes_per_number == FLOAT32 else bytes_per_number
    return chunk * vocabulary * (3 * FLOAT32 + cast)


def backward_bytes(shape: ModelShape, tokens: int, bytes_per_number: int) -> int:
    """Gradients inside a layer while all activations are still there: the MLP's branches and the residual stream."""
    branches = 2 if shape.is_gated else 1
    return tokens * (branches * shape.intermediate + 2 * shape.hidden) * bytes_per_number
