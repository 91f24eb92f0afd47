"""How many numbers an adapter trains, by arithmetic on the sizes of a model that is not loaded.

Owns one formula for each method of `model.tuning`; what a method is, `policies.config` and `policies.tuners` say.
Symbols: r rank, s size of a bottleneck, n virtual tokens, h width of an encoder, L layers, D hidden size, I width of
the MLP, K keys (or values) of a layer.
"""

from policies.config import (
    AdapterTuning,
    BitFitTuning,
    BottleneckTuning,
    HeadTuning,
    Ia3Tuning,
    LoraTuning,
    MixAndMatchTuning,
    PrefixTuning,
    PTuning,
    PTuningV2,
)
from policies.model_shape import LinearShape, ModelShape


def adapter_elements(shape: ModelShape, tuning: AdapterTuning) -> int:
    """Numbers that a new adapter trains. Biases that a model has already are left out; they are too few to matter."""
    if isinstance(tuning, LoraTuning):
        return round(_lora(shape, tuning) * _share_of_layers(shape, tuning.layers))
    if isinstance(tuning, Ia3Tuning):
        per_layer = 2 * shape.key_value_width + shape.intermediate
        return round(shape.layers * per_layer * _share_of_layers(shape, tuning.layers))
    if isinstance(tuning, BottleneckTuning):
        places = 2 if tuning.placement == "houlsby" else 1
        return round(places * _bottlenecks(shape, tuning.size) * _share_of_layers(shape, tuning.layers))
    if isinstance(tuning, BitFitTuning):
        return sum(linear.rows for linear in shape.linears) if tuning.add_missing else 0
    if isinstance(tuning, HeadTuning):
        return shape.vocabulary * shape.hidden
    if isinstance(tuning, MixAndMatchTuning):
        return _bottlenecks(shape, tuning.size) + tuning.virtual_tokens * _keys_and_values(shape)
    if isinstance(tuning, PTuningV2):
        return tuning.virtual_tokens * _keys_and_values(shape)
    if isinstance(tuning, PrefixTuning):
        return _projected_prefix(shape, tuning)
    if isinstance(tuning, PTuning):
        return tuning.virtual_tokens * shape.hidden + _encoder(shape, tuning)
    return tuning.virtual_tokens * shape.hidden


def is_adapted(linear: LinearShape, tuning: LoraTuning) -> bool:
    """Whether LoRA hangs on this linear layer."""
    return tuning.target_modules == "all-linear" or linear.name in tuning.target_modules


def _lora(shape: ModelShape, tuning: LoraTuning) -> int:
    """R (in + out) of every adapted layer: A is (r, in), B is (out, r) (Hu et al. 2021); DoRA has a norm a row."""
    adapted = [linear for linear in shape.linears if is_adapted(linear, tuning)]
    norms = sum(linear.rows for linear in adapted) if tuning.variant == "dora" else 0
    return sum(tuning.rank * (linear.rows + linear.columns) for linear in adapted) + norms


def _bottlenecks(shape: ModelShape, size: int) -> int:
    """One in each layer: (D, s) and s, (s, D) and D."""
    return shape.layers * (2 * shape.hidden * size + size + shape.hidden)


def _keys_and_values(shape: ModelShape) -> int:
    """Of one virtual token in every layer."""
    return 2 * shape.layers * shape.key_value_width


def _projected_prefix(shape: ModelShape, tuning: PrefixTuning) -> int:
    """N embeddings of K numbers, and the network K -> h -> 2 L K (Li and Liang 2021)."""
    width, inner = shape.key_value_width, tuning.projection_size
    return tuning.virtual_tokens * width + (width + 1) * inner + (inner + 1) * _keys_and_values(shape)


def _encoder(shape: ModelShape, tuning: PTuning) -> int:
    """D -> h -> h -> D; or two bidirectional LSTM layers, four gates with two biases each, then 2h -> 2h -> D."""
    width, inner = shape.hidden, tuning.encoder_size
    if tuning.encoder == "mlp":
        return (width + 1) * inner + (inner + 1) * inner + (inner + 1) * width
    lstm = sum(2 * 4 * inner * (reads + inner + 2) for reads in (width, 2 * inner))
    return lstm + (2 * inner + 1) * 2 * inner + (2 * inner + 1) * width


def _share_of_layers(shape: ModelShape, layers: tuple[int, ...] | None) -> float:
    return 1.0 if layers is None else len(layers) / shape.layers
