"""Named adapters on one base model: add, load, copy, switch, train, save, merge.

Owns everything that is asked of an adapter, whichever method it is: layers that PEFT injects
(`policies.injected_layers`) or virtual tokens (`policies.virtual_tokens`). The base model object itself carries them,
so callers go on using it; outside `AdapterSet.use` every adapter is off. It does not know what an adapter is for.
"""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, TaskType
from peft.config import PromptLearningConfig
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import load_peft_weights
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies import pissa
from policies.base_identity import about_base, base_difference, base_fingerprint, base_parameters, copy_exactly
from policies.checkpoint import load_metadata, save_adapter
from policies.config import AdapterTuning, LoraTuning, PromptTuning
from policies.injected_layers import InjectedLayers, merge_layers
from policies.peft_configs import SUPPORTED, peft_config
from policies.quantization import dequantize_linears
from policies.tuners.methods import BitFitConfig, OutputLayerConfig
from policies.virtual_prefix import BodyPrefix
from policies.virtual_tokens import VirtualTokens

_PISSA_RANK = "pissa_rank"

logger = logging.getLogger(__name__)


class AdapterSet:
    """The adapters of one base model.

    New adapters are off and frozen: `use` switches one on for a block, `trainable` lets gradients into its
    parameters. Neither touches the base or the other adapters.

    Args:
        model: The base.
        tokenizer: Its tokenizer; needed by prompt tuning that starts from a text.
        task: PEFT's name of what the base does, as adapter folders record it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        task: TaskType = TaskType.CAUSAL_LM,
    ) -> None:
        self.model = model
        self._tokenizer, self._task = tokenizer, task
        self._configs: dict[str, PeftConfig] = {}
        self._layers = InjectedLayers(model)
        self._virtual = VirtualTokens(model)
        self._starts: dict[str, str] = {}
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

    def virtual_tokens(self, name: str | None) -> int:
        """Virtual tokens that an adapter puts before every row; 0 for most methods, and for None."""
        return 0 if name is None else getattr(self._configs[self._require(name)], "num_virtual_tokens", 0)

    def kind(self, name: str) -> str:
        """PEFT's name of an adapter's method, such as LORA."""
        return str(cast(Any, self._configs[self._require(name)].peft_type).value)

    def add(self, name: str, tuning: AdapterTuning, *, seed: int) -> None:
        """Adds a new adapter, random by `seed`.

        Its output equals the base's until it is trained, for all methods but those with virtual tokens, which move it
        from the start.

        Raises:
            ValueError: if the name is taken, the method does not fit the architecture, or another one is in place.
        """
        self._require_free(name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config = peft_config(self.model, tuning)
            config.task_type = self._task
            is_pissa = isinstance(tuning, LoraTuning) and tuning.variant == "pissa"
            self._create(name, config, initial_ids=self._initial_ids(tuning), has_start=is_pissa)
            if is_pissa:
                layers = [cast(LoraLayer, layer) for _, layer in self._layers.of(name)]
                pissa.start_from_principal_components(layers, name, self._starts[name])

    def load(self, name: str, folder: str | Path) -> dict[str, Any]:
        """Loads an adapter that PEFT or `save` wrote.

        The head of a sequence-classification adapter is left out: it is no part of the base (see
        `policies.scalar_head`).

        Returns:
            Metadata of the folder; empty where PEFT alone wrote it.

        Raises:
            ValueError: if the name is taken, its method is none of ours, it was trained on another base, or its tensors
                do not fit.
        """
        self._require_free(name)
        config = PeftConfig.from_pretrained(str(folder))
        if not isinstance(config, SUPPORTED):
            known = ", ".join(sorted(kind.__name__.removesuffix("Config") for kind in SUPPORTED))
            raise ValueError(f"adapter {str(folder)!r} is of type {config.peft_type}; supported are {known}")
        metadata = load_metadata(folder)
        self._require_same_base(folder, metadata)
        tensors = _without_head(load_peft_weights(str(folder), device="cpu"), config, folder)
        config.task_type, cast(Any, config).modules_to_save = self._task, None
        # A prompt encoder is not in the folder, only what it has computed; PEFT says so by this flag.
        config.inference_mode = isinstance(config, PromptLearningConfig)
        has_start = isinstance(config, LoraConfig) and _PISSA_RANK in metadata
        if has_start:
            config, tensors = pissa.with_halved_rank(cast(LoraConfig, config)), pissa.parted(tensors)
        self._create(name, config, has_start=has_start)
        self.load_state(name, tensors)
        return metadata

    def copy(self, source: str, target: str) -> None:
        """Adds `target` with the shape and the present weights of `source`.

        Raises:
            ValueError: if `source` is unknown or the name `target` is taken.
        """
        self._require(source)
        self._require_free(target)
        self._create(target, copy.deepcopy(self._configs[source]), has_start=source in self._starts)
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
        """Like `use`, with a LoRA adapter added into the base weights: decoding then costs what the base alone costs.

        Merged copies take the place of the base weights and the originals return afterwards, so nothing drifts.
        Outputs equal those of `use` up to rounding; with a bfloat16 base the rounding is large, so keep to `use`
        there. Other methods, DoRA, and adapters of an embedding that is the output layer, too, are used as they are. No
        gradients.
        """
        if name is not None and not self.is_sum(name):
            with self.use(name), torch.no_grad():
                yield
            return
        with self.use(None), torch.no_grad():
            originals = [] if name is None else self._layers.add_to_base(self._parts(name))
            self._merged = name
            try:
                yield
            finally:
                self._merged = None
                for weight, original in originals:
                    weight.data = original

    def parameters(self, name: str) -> list[tuple[str, Parameter]]:
        """Parameters of one adapter under the names PEFT saves them by (free of the adapter's own name)."""
        self._require(name)
        if name in self._virtual:
            return self._virtual.parameters(name)
        frozen = self._layers.parameters(self._starts[name]) if name in self._starts else []
        return self._layers.parameters(name) + [(pissa.frozen_name(key), parameter) for key, parameter in frozen]

    def trainable(self, name: str) -> list[tuple[str, Parameter]]:
        """Lets gradients into one adapter; the base and other adapters stay as they are.

        Raises:
            ValueError: if the name is unknown, or the base itself trains (it would change under the adapter).
        """
        self._require(name)
        if any(parameter.requires_grad for _, parameter in base_parameters(self.model)):
            raise ValueError(
                f"adapter {name!r} cannot train on a base that trains, too; give it a frozen base of its own"
            )
        parameters = self._virtual.parameters(name) if name in self._virtual else self._layers.parameters(name)
        for _, parameter in parameters:
            parameter.requires_grad = True
        return parameters

    def freeze(self, name: str) -> None:
        """Keeps gradients out of one adapter."""
        for _, parameter in self.parameters(name):
            parameter.requires_grad = False

    def state(self, name: str) -> dict[str, Tensor]:
        """Tensors of one adapter by the names of `parameters`; they share memory with the adapter."""
        return {key: parameter.detach() for key, parameter in self.parameters(name)}

    def scalings(self, name: str) -> dict[str, float]:
        """Factor of what the adapter adds in each layer, by the layer's path; alpha / rank in plain LoRA.

        It stands in no tensor, so whoever copies only tensors loses it.
        """
        return {} if self._require(name) in self._virtual else self._layers.scalings(name)

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
        state = self._virtual.saved(name) if name in self._virtual else self.state(name)
        config, about = copy.deepcopy(self._configs[name]), about_base(self.model, self.fingerprint)
        if name in self._starts:
            about[_PISSA_RANK] = cast(LoraConfig, config).r
            config, state = pissa.with_doubled_rank(cast(LoraConfig, config)), pissa.joined(state)
        config.inference_mode = True
        config.base_model_name_or_path = self.model.name_or_path or None
        for field in ("target_modules", "feedforward_modules"):
            names = getattr(config, field, None)
            if names is not None and not isinstance(names, str):
                setattr(config, field, sorted(names))  # A set: its order would change the file's bytes.
        config.save_pretrained(str(folder))
        tensors = {key: tensor.cpu().contiguous() for key, tensor in state.items()}
        save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        return about

    def merged_model(self, name: str | None) -> PreTrainedModel:
        """A plain float32 copy of the base with the adapter merged in, W + (alpha / rank) B A; None merges nothing.

        Raises:
            ValueError: if no weights can hold what the adapter does.
        """
        if name is not None:
            self._require_mergeable(name)
        model = copy.deepcopy(self.model).float()
        dequantize_linears(model, torch.float32)
        BodyPrefix.remove(model)
        merge_layers(model, [] if name is None else self._parts(name))
        if name is not None and isinstance(self._configs[name], OutputLayerConfig):
            model.config.tie_word_embeddings = False
        return model

    def _require(self, name: str) -> str:
        if name not in self._configs:
            raise ValueError(f"no adapter {name!r}; there are {list(self._configs)}")
        return name

    def _require_free(self, name: str) -> None:
        if name in self._configs:
            raise ValueError(f"adapter {name!r} exists already; choose another name")

    def _require_same_base(self, folder: str | Path, metadata: Mapping[str, Any]) -> None:
        if metadata.get("base_fingerprint") is None:
            logger.warning("adapter %s does not record its base; whether it fits this one cannot be checked", folder)
            return
        if difference := base_difference(self.model, metadata, fingerprint=self.fingerprint):
            raise ValueError(f"adapter {str(folder)!r} was trained on {difference}; load it on its own base")

    def _require_mergeable(self, name: str) -> None:
        config = self._configs[self._require(name)]
        if self.virtual_tokens(name):
            reason = "its virtual tokens stand before a text, and no weight can hold them"
        elif self.kind(name) == "BOTTLENECK":
            reason = "a function stands between its two layers, so no weight can hold it"
        elif self._adapts_tied_embedding(name):
            reason = "the embedding that it adapts is the output layer, too, and only one of them is meant"
        elif isinstance(config, BitFitConfig) and (missing := self._without_bias(name)):
            reason = f"{missing} of {type(self.model).__name__} has no bias that its folder could hold"
        else:
            return
        raise ValueError(f"adapter {name!r} ({self.kind(name)}) cannot be merged: {reason}; keep its folder as it is")

    def _without_bias(self, name: str) -> str | None:
        """The first module that carries the adapter and has no bias of its own."""
        bare = (path for path, layer in self._layers.of(name) if layer.get_base_layer().bias is None)
        return next(bare, None)

    def is_sum(self, name: str) -> bool:
        """Whether an adapter is a term beside each layer's own, which reads nothing of it: LoRA, but not DoRA."""
        config = self._configs[self._require(name)]
        is_lora = isinstance(config, LoraConfig) and not config.use_dora
        return is_lora and not self._adapts_tied_embedding(name)

    def _adapts_tied_embedding(self, name: str) -> bool:
        output = cast(nn.Module | None, self.model.get_output_embeddings())
        tied = getattr(output.get_base_layer() if isinstance(output, BaseTunerLayer) else output, "weight", None)
        layers = (layer.get_base_layer() for _, layer in self._layers.of(name))
        return any(isinstance(layer, nn.Embedding) and layer.weight is tied for layer in layers)

    def _parts(self, name: str) -> list[str]:
        return [name, self._starts[name]] if name in self._starts else [name]

    def _initial_ids(self, tuning: AdapterTuning) -> list[int] | None:
        if not isinstance(tuning, PromptTuning) or tuning.initial_text is None:
            return None
        assert self._tokenizer is not None, "prompt tuning that starts from a text needs the tokenizer"
        ids = self._tokenizer(tuning.initial_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ValueError(
                f"model.tuning.initial_text={tuning.initial_text!r} has no tokens; give a text that has some"
            )
        return cast(list[int], ids)

    def _create(
        self, name: str, config: PeftConfig, *, initial_ids: list[int] | None = None, has_start: bool = False
    ) -> None:
        """Builds an adapter, off and frozen, without changing what else is active or trains."""
        if isinstance(config, PromptLearningConfig):
            self._virtual.add(name, config, initial_ids=initial_ids)
        else:
            self._layers.inject(name, config)
        if has_start:
            self._starts[name] = f"{name}@{pissa.START}"
            self._layers.inject(self._starts[name], copy.deepcopy(config))
        self._configs[name] = config
        self._switch(self._active, force=True)

    def _switch(self, name: str | None, *, force: bool = False) -> None:
        if name == self._active and not force:
            return
        is_virtual = name is not None and name in self._virtual
        self._layers.switch([] if name is None or is_virtual else self._parts(name))
        self._virtual.active = name if is_virtual else None
        self._active = name


def _without_head(tensors: dict[str, Tensor], config: PeftConfig, folder: str | Path) -> dict[str, Tensor]:
    modules = getattr(config, "modules_to_save", None)
    if not modules:
        return tensors
    if config.task_type != TaskType.SEQ_CLS or not isinstance(config, LoraConfig):
        raise ValueError(
            f"adapter {str(folder)!r} also replaces whole modules (modules_to_save={modules}); "
            "merge it into its base first"
        )
    return {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
