"""How many weights an adapter has, by arithmetic on the sizes of a model: one formula a tuning method.

Owns the counts that `rlhf plan` shows before anything is loaded. Symbols: D hidden size, I width of the MLP, V
vocabulary, L adapted layers, K width of keys (or values), n virtual tokens, r rank, h width of a method's own network.
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
    PromptTuning,
    PTuning,
    Tuning,
)
from policies.model_shape import LinearShape, ModelShape


def adapter_elements(shape: ModelShape, tuning: Tuning) -> int:
    """Weights of an adapter that train; 0 under full tuning.

    Biases are counted as those of all linear layers, IA3 as PEFT places it where keys and values have projections of
    their own, and bottleneck adapters where their placement says; with other `target_modules` the three are estimates.
    """
    if isinstance(tuning, LoraTuning):
        embedding = tuning.rank * (shape.vocabulary + shape.hidden) if tuning.embeddings else 0
        linears = sum(_lora_elements(linear, tuning) for linear in shape.linears)
        return embedding + linears * _layers(shape, tuning) // shape.layers
    if isinstance(tuning, Ia3Tuning):
        return _layers(shape, tuning) * (2 * shape.key_value_width + shape.intermediate)
    if isinstance(tuning, BottleneckTuning):
        sublayers = 2 if tuning.placement == "houlsby" else 1
        return _layers(shape, tuning) * sublayers * _bottleneck(shape.hidden, tuning.size)
    if isinstance(tuning, BitFitTuning):
        return sum(linear.rows for linear in shape.linears) * _layers(shape, tuning) // shape.layers
    if isinstance(tuning, HeadTuning):
        return shape.vocabulary * shape.hidden
    return 0 if tuning.kind == "full" else _virtual_elements(shape, tuning)


def frozen_elements(shape: ModelShape, tuning: Tuning) -> int:
    """Weights of an adapter that stay as they are: the start of PiSSA."""
    is_pissa = isinstance(tuning, LoraTuning) and tuning.variant == "pissa"
    return adapter_elements(shape, tuning) if is_pissa else 0


def merged_elements(shape: ModelShape, tuning: Tuning) -> int:
    """Base weights that a sampler copies to add the adapter to them.

    Only LoRA without DoRA is added, and not to an embedding that is the output layer, too.
    """
    if not isinstance(tuning, LoraTuning) or tuning.variant == "dora":
        return 0
    if tuning.embeddings and not shape.output_parameters:
        return 0
    embedding = shape.vocabulary * shape.hidden if tuning.embeddings else 0
    adapted = sum(linear.elements for linear in shape.linears if _is_adapted(linear, tuning))
    return embedding + adapted * _layers(shape, tuning) // shape.layers


def _lora_elements(linear: LinearShape, tuning: LoraTuning) -> int:
    """A is (r, in), B is (out, r) (Hu et al. 2021); DoRA has a norm for each output (Liu et al. 2024)."""
    if not _is_adapted(linear, tuning):
        return 0
    norms = linear.rows if tuning.variant == "dora" else 0
    return tuning.rank * (linear.rows + linear.columns) + norms


def _is_adapted(linear: LinearShape, tuning: LoraTuning) -> bool:
    return tuning.target_modules == "all-linear" or linear.name in tuning.target_modules


def _virtual_elements(shape: ModelShape, tuning: AdapterTuning) -> int:
    hidden, states = shape.hidden, 2 * shape.layers * shape.key_value_width
    if isinstance(tuning, MixAndMatchTuning):
        return tuning.virtual_tokens * states + shape.layers * _bottleneck(hidden, tuning.size)
    if isinstance(tuning, PrefixTuning):
        width, h = shape.key_value_width, tuning.projection_size
        return tuning.virtual_tokens * width + (width + 1) * h + (h + 1) * states
    if isinstance(tuning, PromptTuning):
        return tuning.virtual_tokens * hidden
    if isinstance(tuning, PTuning):
        return tuning.virtual_tokens * hidden + _prompt_encoder(hidden, tuning)
    assert tuning.kind == "p_tuning_v2", "every method has a formula"
    return tuning.virtual_tokens * states


def _prompt_encoder(hidden: int, tuning: PTuning) -> int:
    """An MLP D -> h -> h -> D; or two bidirectional LSTM layers of width h with an MLP 2 h -> 2 h -> D behind them."""
    h = tuning.encoder_size
    if tuning.encoder == "mlp":
        return (hidden + 1) * h + (h + 1) * h + (h + 1) * hidden
    recurrent = sum(2 * 4 * h * (inputs + h + 2) for inputs in (hidden, 2 * h))
    return recurrent + (2 * h + 1) * 2 * h + (2 * h + 1) * hidden


def _bottleneck(hidden: int, size: int) -> int:
    return (hidden + 1) * size + (size + 1) * hidden


def _layers(shape: ModelShape, tuning: LoraTuning | Ia3Tuning | BottleneckTuning | BitFitTuning) -> int:
    return shape.layers if tuning.layers is None else len(set(tuning.layers))
