"""Sequence classifiers with one output, as transformers and PEFT have them: loading, a new head, LoRA.

Owns what the two libraries are asked for, and what of their answer is refused. Where a score is read, and what a
trained folder holds, is `reward.model`.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.utils import load_peft_weights
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from policies.base_identity import base_difference
from policies.checkpoint import load_metadata
from policies.config import LoraTuning, ModelConfig, Quantization
from policies.peft_configs import lora_config
from policies.quantization import quantize_linears
from policies.sources import unreachable

Classifier = PreTrainedModel | PeftModel

_SAVED_BY_PEFT = ("classifier", "score")
"""Names of heads that PEFT itself saves in full with a classification adapter."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedClassifier:
    """A sequence classifier with one output, and what its files did not hold.

    Attributes:
        model: The classifier.
        has_new_head: Its head starts at random: it was absent, or of another size.
        missing: Names of weights of its backbone that start at random.
    """

    model: PreTrainedModel
    has_new_head: bool
    missing: tuple[str, ...]


def load_classifier(
    path: str,
    *,
    dtype: str,
    attention: str,
    tokenizer: PreTrainedTokenizerBase,
    quantization: Quantization = "none",
    device: torch.device | str = "cpu",
) -> LoadedClassifier:
    """The model with one output, padding as its tokenizer does.

    Args:
        path: Folder or hub name of a full model.
        dtype: Precision of all weights.
        attention: Attention implementation; "sdpa" means the best that the architecture has as a classifier (some have
            it as a language model only).
        tokenizer: The one that belongs to it.
        quantization: How the linear layers of its body are held.
        device: Where quantized layers live; everything else is on the CPU.

    Raises:
        ValueError: if bitsandbytes is missing, or transformers cannot load it as a sequence classifier.
    """
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=AutoConfig.from_pretrained(path, num_labels=1),
            dtype=getattr(torch, dtype),
            attn_implementation=None if attention == "sdpa" else attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreachable(path, error) from error
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    new = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    if quantization != "none":
        quantize_linears(cast(nn.Module, model.base_model), quantization, device)
    of_body = tuple(sorted(name for name in new if name.startswith(f"{model.base_model_prefix}.")))
    return LoadedClassifier(model, has_new_head=len(new) > len(of_body), missing=of_body)


def is_decoder(classifier: PreTrainedModel) -> bool:
    """Decoders of transformers hang a linear layer called `score` on their body; encoders have heads of their own."""
    return isinstance(getattr(classifier, "score", None), nn.Module)


def initialise_head(classifier: PreTrainedModel, *, seed: int) -> None:
    """Draws the last linear layer of the head from N(0, 1 / (D + 1)), bias 0 (Stiennon et al. 2020, appendix B.1).

    Layers before it, which some encoders have, keep the initialisation of their architecture.
    """
    outputs = [module for module in _head_modules(classifier) if getattr(module, "out_features", None) == 1]
    assert outputs, f"{type(classifier).__name__} has no linear layer with one output"
    layer = cast(nn.Linear, outputs[-1])
    noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
    layer.weight.data = (noise / math.sqrt(layer.in_features + 1)).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.data.zero_()


def score_in_float32(classifier: PreTrainedModel) -> None:
    """Lets the last layer of the head compute in float32, under autocast and on a backbone of less precision too.

    The loss is a function of score differences, of which three digits of bfloat16 would leave little.
    """
    for module in _head_modules(classifier):
        if isinstance(module, nn.Linear) and module.out_features == 1:
            module.register_forward_hook(_linear_in_float32)


def require_complete(loaded: LoadedClassifier, path: str) -> None:
    """Refuses a trained classifier of which weights are missing: its scores would be another's at each load.

    Raises:
        ValueError: naming them.
    """
    if loaded.has_new_head:
        raise ValueError(f"reward model {path!r} has no trained head with one output; train one with `rlhf reward`")
    if loaded.missing:
        raise ValueError(
            f"reward model {path!r} lacks weights of its backbone ({_listed(loaded.missing)}); restore its files, or "
            "train it again with `rlhf reward`"
        )


def require_head(adapter: str, loaded: LoadedClassifier) -> None:
    """Refuses an adapter without the head of its classifier, unless the base has a trained one.

    Raises:
        ValueError: a part of the head is in neither.
    """
    saved = load_peft_weights(adapter, device="cpu") if loaded.has_new_head else {}
    absent = [name for name in _head_names(loaded.model) if not any(f".{name}." in key for key in saved)]
    if loaded.has_new_head and absent:
        raise ValueError(
            f"reward model {adapter!r}: the adapter was saved without its head ({absent[0]}), so its scores are lost; "
            f"train it again, with modules_to_save={absent} in PEFT's configuration"
        )


def with_tuning(loaded: LoadedClassifier, config: ModelConfig, *, adapter: str | None) -> Classifier:
    """What trains: all weights, or LoRA and the head.

    Args:
        loaded: from `load_classifier`.
        config: what trains.
        adapter: folder of an adapter on the same base that LoRA starts from; its rank and alpha then stay.

    Raises:
        ValueError: if the combination of tuning, precision and adapter cannot train.
    """
    classifier = loaded.model
    if isinstance(config.tuning, LoraTuning):
        if loaded.missing:
            raise ValueError(
                f"model.tuning.kind=lora: {config.path!r} lacks weights of the backbone ({_listed(loaded.missing)}), "
                "and the adapter's folder would lack them, too; set model.tuning.kind=full, or take a whole checkpoint"
            )
        return _with_lora(classifier, config.tuning, adapter)
    if loaded.missing:
        logger.warning("%s lacks weights, which start at random: %s", config.path, _listed(loaded.missing))
    if adapter is not None:
        raise ValueError(
            "model.tuning.kind=full: model.path holds an adapter, and full tuning would leave it out; set "
            "model.tuning.kind=lora, or `rlhf export` it first"
        )
    if classifier.dtype != torch.float32:
        raise ValueError(f"model.dtype={config.dtype} cannot train in full; use float32, or model.tuning.kind=lora")
    return classifier


def require_same_base(adapter: str, classifier: PreTrainedModel) -> None:
    """Refuses an adapter whose metadata names another base; one without metadata cannot be checked.

    Raises:
        ValueError: naming both fingerprints.
    """
    metadata = load_metadata(adapter)
    if metadata.get("base_fingerprint") is None:
        logger.warning("adapter %s does not record its base; whether it fits this one cannot be checked", adapter)
    elif difference := base_difference(classifier, metadata):
        raise ValueError(
            f"adapter {adapter!r} was trained on {difference}; restore that base, or train the adapter again"
        )


def _with_lora(classifier: PreTrainedModel, tuning: LoraTuning, adapter: str | None) -> PeftModel:
    """LoRA on every linear layer but the head, which trains in full; PEFT saves it with the adapter."""
    if is_decoder(classifier):
        cast(nn.Module, classifier.score).float()  # What trains is float32, whatever the precision of the backbone.
    elif classifier.dtype != torch.float32:
        raise ValueError(f"model.dtype={classifier.dtype}: the head of an encoder trains in its precision; use float32")
    head = _rest_of_head(classifier)
    shape = (
        lora_config(classifier, tuning, TaskType.SEQ_CLS, modules_to_save=head)
        if adapter is None
        else _shape_of(adapter, classifier)
    )
    try:
        model = cast(PeftModel, get_peft_model(classifier, shape))
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"model.tuning.target_modules={tuning.target_modules!r}: {reason}") from error
    if adapter is not None:
        _load_adapter(model, adapter)
    return model


def _shape_of(adapter: str, classifier: PreTrainedModel) -> LoraConfig:
    """The shape of a policy's or a reward model's adapter, for a reward model that trains on from it."""
    require_same_base(adapter, classifier)
    config = LoraConfig.from_pretrained(adapter)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"model.path={adapter!r}: an adapter of type {config.peft_type}; only LORA is supported")
    config.task_type, config.inference_mode, config.lora_dropout = TaskType.SEQ_CLS, False, 0.0
    config.modules_to_save = [*(config.modules_to_save or ()), *(_rest_of_head(classifier) or ())] or None
    logger.info("the reward model starts from the adapter of model.path; its rank and alpha stay")
    return config


def _load_adapter(model: PeftModel, adapter: str) -> None:
    """Overwrites what the adapter holds; the head of one that has none (a policy's) stays as it is."""
    own, loaded = get_peft_model_state_dict(model), load_peft_weights(adapter, device="cpu")
    unknown = sorted(loaded.keys() - own.keys())
    if unknown:
        raise ValueError(
            f"model.path={adapter!r}: a reward model has no place for tensors of this adapter, such as {unknown[0]}; "
            "merge it with `rlhf export` first"
        )
    set_peft_model_state_dict(model, {**own, **loaded})


def _linear_in_float32(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
    """A forward hook: what the layer would have returned, computed again (one output a sequence costs nothing)."""
    linear, states = cast(nn.Linear, layer), inputs[0].float()
    with torch.autocast(states.device.type, enabled=False):
        bias = None if linear.bias is None else linear.bias.float()
        return functional.linear(states, linear.weight.float(), bias)


def _rest_of_head(classifier: PreTrainedModel) -> list[str] | None:
    """Parts of the head that PEFT leaves out: layers before the last one, such as ModernBERT's `head`.

    No checkpoint of a language model holds them. They start at random, and an adapter without them is worthless.
    """
    return [name for name in _head_names(classifier) if name not in _SAVED_BY_PEFT] or None


def _head_names(classifier: PreTrainedModel) -> list[str]:
    """Parts of the classifier beside its body that have weights."""
    with_weights = {name.partition(".")[0] for name, _ in classifier.named_parameters()}
    children = classifier.named_children()
    return [name for name, child in children if name in with_weights and child is not classifier.base_model]


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _head_modules(classifier: PreTrainedModel) -> Iterator[nn.Module]:
    body = set(classifier.base_model.modules())
    return (module for module in classifier.modules() if module not in body and module is not classifier)
