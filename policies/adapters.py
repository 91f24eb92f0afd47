"""Named LoRA adapters on one base model: add, load, copy, switch, train, save, merge.

Owns everything that PEFT is asked for, and the rule that an adapter only meets the base it was trained on. The base
model object itself carries the adapter layers, so callers go on using it; outside `AdapterSet.use` every adapter is
off. It does not know what an adapter is for.
"""

import contextlib
import copy
import hashlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, TaskType
from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, cast_adapter_dtype
from peft.utils import load_peft_weights
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from policies.checkpoint import load_metadata, save_adapter
from policies.config import LoraTuning
from policies.lora_linear import use_fast_products
from policies.quantization import dequantize_linears, quantization_of
from policies.sharding import copy_whole_

_SAMPLES_PER_TENSOR = 4096
_PEFT_PREFIX = "base_model.model."

logger = logging.getLogger(__name__)


class AdapterSet:
    """The adapters of one base model.

    New adapters are off and frozen: `use` switches one on for a block, `trainable` lets gradients into its
    parameters. Neither touches the base or the other adapters.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._tuner: LoraModel | None = None
        self._configs: dict[str, LoraConfig] = {}
        self._layers: list[tuple[str, LoraLayer]] = []
        self._parameters: dict[str, list[tuple[str, Parameter]]] = {}
        self._active: str | None = None
        self._merged: str | None = None
        self._kept_fingerprint: str | None = None

    @property
    def fingerprint(self) -> str:
        """Identity of the base weights (`base_fingerprint`): as they are now, or as `keep_fingerprint` found them."""
        return self._kept_fingerprint or base_fingerprint(self.model)

    def keep_fingerprint(self) -> None:
        """Reads the fingerprint for the last time: the base is about to be cut into parts, and stays what it is."""
        self._kept_fingerprint = base_fingerprint(self.model)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all adapters, in the order they came."""
        return tuple(self._configs)

    @property
    def active(self) -> str | None:
        """The adapter that forward passes go through now; None when all are off."""
        return self._active

    def add(self, name: str, tuning: LoraTuning, *, seed: int) -> None:
        """Adds a new adapter: A random by `seed`, B zero, so its output equals the base's until it is trained.

        Raises:
            ValueError: if the name is taken or no module has a name in `target_modules`.
        """
        targets = tuning.target_modules
        config = LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=tuning.rank,
            lora_alpha=cast(int, tuning.alpha),  # Annotated int, but only ever divided by the rank.
            target_modules=targets if isinstance(targets, str) else list(targets),
            lora_dropout=0.0,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in self.model.modules()),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._inject(name, config)

    def load(self, name: str, folder: str | Path) -> dict[str, Any]:
        """Loads an adapter that PEFT or `save` wrote.

        The head of a sequence-classification adapter is left out: it is no part of the base (see
        `policies.scalar_head`).

        Returns:
            Metadata of the folder; empty where PEFT alone wrote it.

        Raises:
            ValueError: if the name is taken, it is no LoRA adapter, it was trained on another base, or its tensors do
                not fit.
        """
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, LoraConfig):
            raise ValueError(f"adapter {str(folder)!r} is of type {config.peft_type}; only LORA is supported")
        metadata = load_metadata(folder)
        self._require_same_base(folder, metadata)
        tensors = _without_head(load_peft_weights(str(folder), device="cpu"), config, folder)
        config.task_type, config.modules_to_save, config.inference_mode = TaskType.CAUSAL_LM, None, False
        self._inject(name, config)
        self.load_state(name, tensors)
        return metadata

    def copy(self, source: str, target: str) -> None:
        """Adds `target` with the shape and the present weights of `source`.

        Raises:
            ValueError: if `source` is unknown or the name `target` is taken.
        """
        self._require(source)
        self._inject(target, copy.deepcopy(self._configs[source]))
        self.load_state(target, self.state(source))

    @contextlib.contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Forward passes inside the block go through this adapter; None turns all off, which is bit-equal to the base.

        What was active before is active again afterwards. Which parameters require gradients does not change. A
        forward pass that is recomputed during `backward` must be inside the block, too.
        """
        if name is not None:
            self._require(name)
        if self._merged is not None:
            raise RuntimeError(f"adapter {self._merged!r} is merged into the base; leave `merged` before `use`")
        previous = self._active
        self._switch(name)
        try:
            yield
        finally:
            self._switch(previous)

    @contextlib.contextmanager
    def merged(self, name: str | None) -> Iterator[None]:
        """Like `use`, with the adapter added into the base weights: decoding then costs what the base alone costs.

        Merged copies take the place of the base weights and the originals return afterwards, so nothing drifts.
        Outputs equal those of `use` up to rounding; with a bfloat16 base the rounding is large, so keep to `use`
        there. No gradients.
        """
        with self.use(None), torch.no_grad():
            originals = [] if name is None else self._merge_in_place(self._require(name))
            self._merged = name
            try:
                yield
            finally:
                self._merged = None
                for weight, original in originals:
                    weight.data = original

    def parameters(self, name: str) -> list[tuple[str, Parameter]]:
        """Parameters of one adapter under the names PEFT saves them by (free of the adapter's own name)."""
        return list(self._parameters[self._require(name)])

    def trainable(self, name: str) -> list[tuple[str, Parameter]]:
        """Lets gradients into one adapter; the base and other adapters stay as they are.

        Raises:
            ValueError: if the name is unknown, or the base itself trains (it would change under the adapter).
        """
        parameters = self.parameters(name)
        if any(parameter.requires_grad for _, parameter in base_parameters(self.model)):
            raise ValueError(
                f"adapter {name!r} cannot train on a base that trains, too; give it a frozen base of its own"
            )
        for _, parameter in parameters:
            parameter.requires_grad = True
        return parameters

    def freeze(self, name: str) -> None:
        """Keeps gradients out of one adapter."""
        for _, parameter in self.parameters(name):
            parameter.requires_grad = False

    def state(self, name: str) -> dict[str, Tensor]:
        """Tensors of one adapter by PEFT's names; they share memory with the adapter."""
        return {key: parameter.detach() for key, parameter in self.parameters(name)}

    def scalings(self, name: str) -> dict[str, float]:
        """Factor of B A in each layer that carries the adapter, by the layer's path; alpha / rank in plain LoRA.

        It stands in no tensor, so whoever copies only tensors loses it.
        """
        self._require(name)
        return {path: float(layer.scaling[name]) for path, layer in self._layers if name in _adapters_of(layer)}

    @torch.no_grad()
    def load_state(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites the weights of one adapter.

        Raises:
            ValueError: if names or shapes differ from the adapter's.
        """
        parameters = dict(self.parameters(name))
        copy_exactly(parameters, tensors, what=f"adapter {name!r}")

    def save(
        self,
        name: str,
        folder: str | Path,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one adapter, atomically, as PEFT does; the base's fingerprint goes into the metadata beside it."""
        save_adapter(folder, self, name, tokenizer, metadata or {})

    def write(self, name: str, folder: Path) -> dict[str, Any]:
        """Writes the adapter's two files into an existing folder; returns metadata about it. `save` does the rest."""
        state = {key: tensor.cpu().contiguous() for key, tensor in self.state(name).items()}
        config = copy.copy(self._configs[name])
        config.inference_mode = True
        config.base_model_name_or_path = self.model.name_or_path or None
        if not isinstance(config.target_modules, str):
            config.target_modules = sorted(
                config.target_modules or ()
            )  # A set: its order would change the file's bytes.
        config.save_pretrained(str(folder))
        save_file(state, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        return about_base(self.model, self.fingerprint)

    def merged_model(self, name: str | None) -> PreTrainedModel:
        """A plain float32 copy of the base with the adapter merged in, W + (alpha / rank) B A; None merges nothing."""
        if name is not None:
            self._require(name)
        model = copy.deepcopy(self.model).float()
        dequantize_linears(model, torch.float32)
        for path, layer in _lora_layers(model):
            if name is not None and name in _adapters_of(layer):
                layer.merge(safe_merge=True, adapter_names=[name])
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())
        if hasattr(model, "peft_config"):
            del model.peft_config
        return model

    def _require(self, name: str) -> str:
        if name not in self._configs:
            raise ValueError(f"no adapter {name!r}; there are {list(self._configs)}")
        return name

    def _require_same_base(self, folder: str | Path, metadata: Mapping[str, Any]) -> None:
        if metadata.get("base_fingerprint") is None:
            logger.warning("adapter %s does not record its base; whether it fits this one cannot be checked", folder)
            return
        if difference := base_difference(self.model, metadata, fingerprint=self.fingerprint):
            raise ValueError(f"adapter {str(folder)!r} was trained on {difference}; load it on its own base")

    def _inject(self, name: str, config: LoraConfig) -> None:
        """Puts an adapter into the model's layers, off and frozen, without changing what else is active or trains."""
        if name in self._configs:
            raise ValueError(f"adapter {name!r} exists already; choose another name")
        trains = {id(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        try:
            if self._tuner is None:
                self._tuner = LoraModel(self.model, {name: config}, name)
            else:
                self._tuner.peft_config[name] = config
                self._tuner.inject_adapter(self.model, name)
        except ValueError as error:
            raise ValueError(
                f"model.tuning.target_modules={config.target_modules!r}: {str(error).splitlines()[0]}"
            ) from error
        cast_adapter_dtype(self.model, name)  # To float32, whatever the precision of the base.
        for parameter in self.model.parameters():
            parameter.requires_grad = id(parameter) in trains
        self._configs[name] = config
        self._layers = _lora_layers(self.model)
        for _, layer in self._layers:
            use_fast_products(layer)
        self._parameters[name] = [
            entry for path, layer in self._layers for entry in _named_parameters(path, layer, name)
        ]
        self._switch(self._active, force=True)

    def _switch(self, name: str | None, *, force: bool = False) -> None:
        """Sets the two attributes that PEFT's LoRA layers read in their forward pass.

        PEFT's own `set_adapter` and `disable_adapter` walk all modules and reset `requires_grad` on every switch: 10
        to 40 ms, and trainable parameters would be frozen behind the caller's back. They write the same two
        attributes (peft 0.21, `BaseTunerLayer.set_adapter` and `enable_adapters`); remove this when PEFT can switch
        without touching gradients.
        """
        if name == self._active and not force:
            return
        # Past nn.Module.__setattr__, which looks for parameters and submodules first and costs more than the rest of
        # the switch.
        for _, layer in self._layers:
            object.__setattr__(layer, "_disable_adapters", name is None)
            if name is not None:
                object.__setattr__(layer, "_active_adapter", [name])
        self._active = name

    def _merge_in_place(self, name: str) -> list[tuple[Parameter, Tensor]]:
        originals: list[tuple[Parameter, Tensor]] = []
        for _, layer in self._layers:
            if name not in _adapters_of(layer):
                continue
            weight = cast(Parameter, layer.get_base_layer().weight)
            delta = cast(Any, layer).get_delta_weight(name)
            originals.append((weight, weight.data))
            weight.data = (weight.data.float() + delta.float()).to(weight.dtype)
        return originals


def base_parameters(module: nn.Module) -> Iterator[tuple[str, Parameter]]:
    """Named parameters without those of adapters, under the names they have without adapters. Shared ones come once."""
    layers = [layer for layer in module.modules() if isinstance(layer, BaseTunerLayer)]
    adapters = {
        id(parameter)
        for layer in layers
        for name, parameter in layer.named_parameters()
        if not name.startswith("base_layer.")
    }
    for name, parameter in module.named_parameters():
        if id(parameter) not in adapters:
            yield name.replace(".base_layer.", "."), parameter


def base_fingerprint(model: PreTrainedModel) -> str:
    """Identity of the weights an adapter was trained on, over names, shapes and up to 8192 values of every tensor.

    Only the body counts, without output layer or score head, so that a policy and a reward model on the same body
    agree. Values are cast to bfloat16 first: the precision a model is loaded in does not matter. Reads every tensor;
    keep the result.
    """
    digest = hashlib.sha256()
    # The codes of quantized layers count as they are, so that each format of a base is a base of its own.
    for name, parameter in sorted(base_parameters(model.base_model), key=lambda entry: entry[0]):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        stride = max(1, parameter.numel() // _SAMPLES_PER_TENSOR)
        sample = parameter.detach().reshape(-1)[::stride].to(torch.bfloat16)
        digest.update(sample.cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:32]


def about_base(model: PreTrainedModel, fingerprint: str | None = None) -> dict[str, Any]:
    """What an adapter's metadata says of its base; its fingerprint is computed where it is not given."""
    return {"base_fingerprint": fingerprint or base_fingerprint(model), "base_quantization": quantization_of(model)}


def base_difference(
    model: PreTrainedModel, metadata: Mapping[str, Any], *, fingerprint: str | None = None
) -> str | None:
    """How a base differs from the one that metadata of `about_base` speak of, as a piece of a sentence; None if not."""
    recorded, format = metadata["base_fingerprint"], metadata.get("base_quantization", "none")
    own, own_format = fingerprint or base_fingerprint(model), quantization_of(model)
    if recorded == own:
        return None
    if format != own_format:
        return (
            f"a base with model.quantization={format}, but {model.name_or_path!r} is loaded with {own_format}: set "
            f"model.quantization={format}"
        )
    return f"a base with fingerprint {recorded}, but {model.name_or_path!r} has {own}"


def copy_exactly(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, what: str) -> None:
    """Copies tensors into parameters of the same names and shapes.

    Raises:
        ValueError: naming the first differences.
    """
    missing, unknown = sorted(parameters.keys() - tensors.keys()), sorted(tensors.keys() - parameters.keys())
    if missing or unknown:
        raise ValueError(f"{what}: the tensors do not fit; missing {missing[:3]}, unknown {unknown[:3]}")
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise ValueError(
                f"{what}: {name} has shape {tuple(tensors[name].shape)}; {tuple(parameter.shape)} is needed"
            )
    for name, parameter in parameters.items():
        copy_whole_(parameter, tensors[name])


def _lora_layers(model: nn.Module) -> list[tuple[str, LoraLayer]]:
    return [(path, layer) for path, layer in model.named_modules() if isinstance(layer, LoraLayer)]


def _adapters_of(layer: LoraLayer) -> set[str]:
    return {*layer.lora_A, *layer.lora_embedding_A}


def _named_parameters(path: str, layer: LoraLayer, adapter: str) -> Iterator[tuple[str, Parameter]]:
    """`lora_A.<adapter>.weight` of the layer at `path`, as `base_model.model.<path>.lora_A.weight`."""
    for name, parameter in cast(nn.Module, layer).named_parameters():
        kind, _, rest = name.partition(".")
        owner, _, leaf = rest.partition(".")
        if kind in layer.adapter_layer_names and owner == adapter:
            yield ".".join(part for part in (f"{_PEFT_PREFIX}{path}", kind, leaf) if part), parameter


def _without_head(tensors: dict[str, Tensor], config: LoraConfig, folder: str | Path) -> dict[str, Tensor]:
    if not config.modules_to_save:
        return tensors
    if config.task_type != TaskType.SEQ_CLS:
        raise ValueError(
            f"adapter {str(folder)!r} also replaces whole modules (modules_to_save={config.modules_to_save}); "
            "merge it into its base first"
        )
    return {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
