"""From `model.tuning` to PEFT's configuration of the method, for one model.

Owns where each method goes in: PEFT's own choice, or the names that decoders give to their sub-layers. What a method
computes is PEFT's, or `policies.tuners`'.
"""

from typing import Literal, cast

from peft import (
    IA3Config,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TaskType,
)
from peft.config import PromptLearningConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

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
    PTuningV2,
)
from policies.injected_layers import base_modules, in_layers, matching_paths
from policies.tuners.methods import BitFitConfig, BottleneckConfig, MixAndMatchConfig, OutputLayerConfig
from policies.virtual_prefix import require_prefix_support

_ATTENTION_OUTPUTS = (
    "self_attn.o_proj",
    "attn.c_proj",
    "attention.dense",
    "self_attn.dense",
    "self_attention.dense",
    "self_attn.out_proj",
    "attn.attention.out_proj",
)
_FEED_FORWARD_OUTPUTS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "fc2")
_FEED_FORWARDS = ("mlp", "feed_forward")
"""Names of sub-layers, the first one that a model has counts; those of more than one kind of decoder each."""

_PEFT_TYPES = {
    "lora": "LORA",
    "ia3": "IA3",
    "bottleneck": "BOTTLENECK",
    "bitfit": "BITFIT",
    "mix_and_match": "MIX_AND_MATCH",
    "head": "OUTPUT_LAYER",
    "prefix": "PREFIX_TUNING",
    "p_tuning_v2": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "p_tuning": "P_TUNING",
}

SUPPORTED = (
    LoraConfig,
    IA3Config,
    BottleneckConfig,
    BitFitConfig,
    OutputLayerConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PromptEncoderConfig,
)
"""Configurations of the methods that this project trains."""


def peft_config(model: PreTrainedModel, tuning: AdapterTuning) -> PeftConfig:
    """The configuration of a new adapter.

    Raises:
        ValueError: if the method does not fit the model's architecture, naming the setting that helps.
    """
    if isinstance(tuning, LoraTuning):
        return lora_config(model, tuning, TaskType.CAUSAL_LM)
    if isinstance(tuning, Ia3Tuning):
        return _ia3(model, tuning)
    if isinstance(tuning, BottleneckTuning):
        return BottleneckConfig(
            task_type=TaskType.CAUSAL_LM,
            target_modules=_within(model, _bottleneck_modules(model, tuning), tuning.layers),
            bottleneck_size=tuning.size,
            activation=tuning.activation,
            is_parallel=tuning.placement == "parallel",
            scale=tuning.scale,
        )
    if isinstance(tuning, BitFitTuning):
        return BitFitConfig(task_type=TaskType.CAUSAL_LM, target_modules=_biased_modules(model, tuning))
    if isinstance(tuning, HeadTuning):
        return OutputLayerConfig(task_type=TaskType.CAUSAL_LM, target_modules=[_output_layer(model)])
    if isinstance(tuning, MixAndMatchTuning):
        require_prefix_support(model, tuning.kind, tuning.virtual_tokens)
        return MixAndMatchConfig(
            task_type=TaskType.CAUSAL_LM,
            target_modules=list(tuning.target_modules or _first_of(model, _FEED_FORWARDS, tuning.kind)),
            bottleneck_size=tuning.size,
            activation=tuning.activation,
            scale=tuning.scale,
            num_virtual_tokens=tuning.virtual_tokens,
        )
    return _virtual_tokens(tuning)


def peft_type_of(tuning: AdapterTuning) -> str:
    """PEFT's name of a method, as adapter folders record it."""
    return _PEFT_TYPES[tuning.kind]


def lora_config(
    model: nn.Module, tuning: LoraTuning, task: TaskType, *, modules_to_save: list[str] | None = None
) -> LoraConfig:
    """The configuration of a new LoRA adapter; the start of `variant=pissa` is `policies.pissa`'s."""
    targets = tuning.target_modules
    names = targets if isinstance(targets, str) else list(targets)
    if tuning.layers is not None or tuning.embeddings:
        names = _lora_paths(cast(PreTrainedModel, model), tuning)
    return LoraConfig(
        task_type=task,
        r=tuning.rank,
        lora_alpha=cast(int, tuning.alpha),  # Annotated int, but only ever divided by the rank.
        target_modules=names,
        modules_to_save=modules_to_save,
        lora_dropout=0.0,
        use_rslora=tuning.variant == "rslora",
        use_dora=tuning.variant == "dora",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def _lora_paths(model: PreTrainedModel, tuning: LoraTuning) -> list[str]:
    """Of the linear layers that are adapted, and of the input embedding where it is."""
    paths = _linear_paths(model, tuning.target_modules)
    if tuning.layers is not None:
        paths = in_layers(model, paths, tuning.layers)
    return [*paths, _embedding_path(model)] if tuning.embeddings else paths


def _linear_paths(model: PreTrainedModel, targets: Literal["all-linear"] | tuple[str, ...]) -> list[str]:
    if targets != "all-linear":
        return matching_paths(model, targets)
    output = _output_module(model)
    return [
        path for path, module in base_modules(model) if isinstance(module, nn.Linear | Conv1D) and module is not output
    ]


def _embedding_path(model: PreTrainedModel) -> str:
    wrapped = cast(nn.Module, model.get_input_embeddings())
    embedding = wrapped.get_base_layer() if isinstance(wrapped, BaseTunerLayer) else wrapped
    return next(path for path, module in base_modules(model) if module is embedding)


def _ia3(model: PreTrainedModel, tuning: Ia3Tuning) -> IA3Config:
    architecture = model.config.get_text_config(decoder=True).model_type
    targets = tuning.target_modules or TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(architecture)
    inner = tuning.feed_forward_modules or TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(architecture)
    if targets is None or inner is None:
        raise ValueError(
            f"model.tuning.kind=ia3: PEFT does not know where to scale {architecture}; name the projections of keys "
            "and values and the last feed-forward layer in model.tuning.target_modules, and the latter again in "
            "model.tuning.feed_forward_modules"
        )
    return IA3Config(
        task_type=TaskType.CAUSAL_LM,
        target_modules=_within(model, list(targets), tuning.layers),
        feedforward_modules=_within(model, list(inner), tuning.layers),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )


def _bottleneck_modules(model: PreTrainedModel, tuning: BottleneckTuning) -> list[str]:
    if tuning.target_modules is not None:
        return list(tuning.target_modules)
    if tuning.placement == "parallel":
        return _first_of(model, _FEED_FORWARDS, tuning.kind)
    feed_forward = _first_of(model, _FEED_FORWARD_OUTPUTS, tuning.kind)
    if tuning.placement == "pfeiffer":
        return feed_forward
    return [*_first_of(model, _ATTENTION_OUTPUTS, tuning.kind), *feed_forward]


def _first_of(model: PreTrainedModel, candidates: tuple[str, ...], kind: str) -> list[str]:
    for name in candidates:
        if matching_paths(model, [name]):
            return [name]
    raise ValueError(
        f"model.tuning.kind={kind}: {type(model).__name__} has none of the modules {', '.join(candidates)}; name its "
        "own in model.tuning.target_modules"
    )


def _biased_modules(model: PreTrainedModel, tuning: BitFitTuning) -> list[str]:
    output = _output_module(model)
    chosen = None if tuning.target_modules is None else set(matching_paths(model, tuning.target_modules))
    paths = [
        path
        for path, module in base_modules(model)
        if module is not output and (chosen is None or path in chosen) and _has_bias(module, tuning)
    ]
    if tuning.layers is not None:
        paths = in_layers(model, paths, tuning.layers)
    if not paths:
        raise ValueError(
            f"model.tuning.kind=bitfit: {type(model).__name__} has no bias terms to train there; set "
            "model.tuning.add_missing=true to add some that start at 0, or model.tuning.kind=ia3"
        )
    return paths


def _has_bias(module: nn.Module, tuning: BitFitTuning) -> bool:
    if isinstance(module, nn.Linear):
        return tuning.add_missing or module.bias is not None
    return isinstance(module, Conv1D | nn.LayerNorm) and module.bias is not None


def _output_layer(model: PreTrainedModel) -> str:
    output = _output_module(model)
    path = next((path for path, module in base_modules(model) if module is output), None)
    if path is None or not isinstance(output, nn.Linear):
        raise ValueError(
            f"model.tuning.kind=head: {type(model).__name__} has no linear output layer to train; set "
            "model.tuning.kind=lora"
        )
    return path


def _output_module(model: PreTrainedModel) -> nn.Module | None:
    """The output layer itself, without the adapter layer around it."""
    output = cast(nn.Module | None, model.get_output_embeddings())
    return output.get_base_layer() if isinstance(output, BaseTunerLayer) else output


def _within(model: PreTrainedModel, names: list[str], layers: tuple[int, ...] | None) -> list[str]:
    """The names, or the full paths of those modules that stand in some layers."""
    return names if layers is None else in_layers(model, matching_paths(model, names), layers)


def _virtual_tokens(tuning: PrefixTuning | PTuningV2 | PromptTuning | PTuning) -> PromptLearningConfig:
    task, count = TaskType.CAUSAL_LM, tuning.virtual_tokens
    if isinstance(tuning, PrefixTuning):
        return PrefixTuningConfig(
            task_type=task, num_virtual_tokens=count, prefix_projection=True, encoder_hidden_size=tuning.projection_size
        )
    if isinstance(tuning, PTuningV2):
        return PrefixTuningConfig(task_type=task, num_virtual_tokens=count)
    if isinstance(tuning, PromptTuning):
        start = "SAMPLE_VOCAB" if tuning.initial_text is None else "RANDOM"  # A text's embeddings are put in later.
        return PromptTuningConfig(task_type=task, num_virtual_tokens=count, prompt_tuning_init=start)
    return PromptEncoderConfig(
        task_type=task,
        num_virtual_tokens=count,
        encoder_reparameterization_type=tuning.encoder.upper(),
        encoder_hidden_size=tuning.encoder_size,
    )
