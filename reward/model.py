"""The learned reward model: a sequence-classification backbone with one output, in full or with LoRA.

Owns loading (new from any backbone, or trained), where the score is read, what trains, and the folder that plain transformers and
PEFT load again. Turning requests into token ids is `reward.scoring`; sharing a base with a policy is `reward.shared_model`.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from policies.adapters import base_fingerprint, copy_exactly
from policies.checkpoint import METADATA_FILE, atomic_folder, load_metadata
from policies.config import LoraTuning, ModelConfig
from policies.loading import resolve_device
from policies.sources import resolve_source, unreachable
from policies.tokenization import load_tokenizer, tokenizer_fingerprint
from reward.normalization import Normalizer

logger = logging.getLogger(__name__)

_PROBE_TOKENS = 6


class RewardModel:
    """r(x, y): one number for a token sequence, read at its last real token where the backbone is a decoder.

    An encoder's score comes from its own classification head. Dropout is off for good. A new head has weights from
    N(0, 1 / (D + 1)) and bias 0 (Stiennon et al. 2020, appendix B.1).

    Attributes:
        tokenizer: Its tokenizer.
        device: Where the model lives.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wraps a model that is already on its device.

        Raises:
            ValueError: if reading the score at the last token does not reproduce the model's own output.
        """
        self._model = model.eval()
        self._classifier = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        self.tokenizer = tokenizer
        self.device = self._classifier.device
        self._reads_last_token = _is_decoder(self._classifier)
        self._require_same_scores()

    @classmethod
    def new(cls, config: ModelConfig, *, seed: int) -> "RewardModel":
        """A reward model to train, on the backbone that `config` names.

        A folder with an adapter gives its base and, with LoRA tuning, the adapter's weights as the start.

        Args:
            config: backbone, precision, device and what trains.
            seed: draws head and LoRA weights.

        Raises:
            ValueError: if the backbone cannot be loaded, cannot train in its precision, or pads with its end-of-sequence token.
        """
        source = resolve_source(config.path)
        tokenizer = load_tokenizer(config)
        _require_distinct_pad(tokenizer, config.path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            classifier, fresh = _load_classifier(source.base, dtype=config.dtype, attention=config.attention, tokenizer=tokenizer)
            if fresh:
                _initialise_head(classifier, seed=seed)
            model = _with_tuning(classifier, config, source.adapter)
        return cls(model.to(resolve_device(config.device)), tokenizer)

    @classmethod
    def from_folder(cls, path: str, *, device: str = "auto", dtype: str = "float32") -> "RewardModel":
        """A trained reward model: a folder that `save` wrote, or any classifier with one label.

        Raises:
            ValueError: if it has no trained head with one output, or its adapter was trained on another base.
        """
        source = resolve_source(path)
        tokenizer = load_tokenizer(ModelConfig(path=path))
        classifier, fresh = _load_classifier(source.base, dtype=dtype, attention="sdpa", tokenizer=tokenizer)
        if source.adapter is None:
            if fresh:
                raise ValueError(f"reward model {path!r} has no trained head with one output; train one with `rlhf reward`")
            return cls(classifier.to(resolve_device(device)), tokenizer)
        _require_same_base(path, classifier)
        model = cast(PeftModel, PeftModel.from_pretrained(classifier, path))
        return cls(model.to(resolve_device(device)), tokenizer)

    @property
    def context_tokens(self) -> int:
        """Longest sequence that the backbone has positions for."""
        config = self._classifier.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        # RoBERTa and its kin count positions from pad_token_id + 1.
        reserved = config.pad_token_id + 1 if getattr(config, "model_type", "") in _OFFSET_POSITIONS else 0
        return int(min(limit - reserved, 2**31 - 1))

    @property
    def is_adapter(self) -> bool:
        """Whether LoRA trains, rather than the whole model."""
        return isinstance(self._model, PeftModel)

    def raw_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores before normalisation, the same whatever the padding and its id.

        Args:
            input_ids: (M, T), right-padded.
            attention_mask: (M, T), True at real tokens; each row has at least one.

        Returns:
            (M,) float32, with gradients where they are enabled.
        """
        if not self._reads_last_token:
            return self._classifier(input_ids=input_ids, attention_mask=attention_mask).logits.squeeze(-1).float()
        # Padding on the right is out of sight of every real token of a decoder, and without a mask the fastest kernels apply.
        hidden = self._classifier.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        last = last_states(hidden, attention_mask)
        head = cast(nn.Module, self._classifier.score)
        return head(last.to(next(head.parameters()).dtype)).squeeze(-1).float()

    def trainable(self) -> list[tuple[str, Parameter]]:
        """Named parameters that train."""
        return [(name, parameter) for name, parameter in self._model.named_parameters() if parameter.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        """Tensors of what trains; they share memory with the model."""
        return {name: parameter.detach() for name, parameter in self.trainable()}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites what `weights` returned.

        Raises:
            ValueError: if names or shapes differ.
        """
        copy_exactly(dict(self.trainable()), tensors, what="reward model")

    def save(self, folder: str | Path, *, normalizer: Normalizer, metadata: Mapping[str, Any]) -> None:
        """Writes, atomically, a folder that transformers (or PEFT) loads, with tokenizer, normaliser and metadata beside it.

        An adapter's metadata holds the fingerprint of its base, so that it is never loaded on another one.
        """
        about = {**metadata, "kind": "reward_model", "tokenizer_fingerprint": tokenizer_fingerprint(self.tokenizer)}
        if self.is_adapter:
            about["base_fingerprint"] = base_fingerprint(self._classifier)
        with atomic_folder(folder) as aside:
            self._model.save_pretrained(str(aside))
            self.tokenizer.save_pretrained(str(aside))
            normalizer.save(aside)
            (aside / METADATA_FILE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @torch.no_grad()
    def _require_same_scores(self) -> None:
        """Compares the padded reading with transformers' own output on unpadded rows, once."""
        pad, eos = cast(int, self.tokenizer.pad_token_id), cast(int, self.tokenizer.eos_token_id)
        ids = [i for i in range(_PROBE_TOKENS + 2) if i not in (pad, eos)][: _PROBE_TOKENS - 1] + [eos]
        rows = [torch.tensor([ids], device=self.device), torch.tensor([ids[3:]], device=self.device)]
        expected = torch.cat([self._classifier(input_ids=row).logits.reshape(-1).float() for row in rows])
        padded = torch.full((2, len(ids)), pad, device=self.device)
        padded[0], padded[1, : len(ids) - 3] = rows[0][0], rows[1][0]
        mask = torch.arange(len(ids), device=self.device) < torch.tensor([[len(ids)], [len(ids) - 3]], device=self.device)
        received = self.raw_scores(padded, mask)
        tolerance = 1e-4 if self._classifier.dtype == torch.float32 else 3e-2
        if pad != eos and not torch.allclose(received, expected, rtol=tolerance, atol=tolerance):
            raise ValueError(
                f"model.path={self._classifier.name_or_path!r}: scores of {type(self._classifier).__name__} change with padding, by "
                f"{float((received - expected).abs().max()):.2g}; this architecture is not supported"
            )


_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer"})


def _is_decoder(classifier: PreTrainedModel) -> bool:
    """Decoders of transformers hang a linear layer called `score` on their body; encoders have heads of their own."""
    return isinstance(getattr(classifier, "score", None), nn.Module)


def last_states(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """(M, T, D) states and (M, T) mask of right-padded rows -> (M, D), the state at each row's last real token."""
    last = attention_mask.long().sum(dim=1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _load_classifier(
    path: str, *, dtype: str, attention: str, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, bool]:
    """The model with one output, and whether its head is new (absent from the files, or of another size)."""
    try:
        settings = AutoConfig.from_pretrained(path, num_labels=1)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path,
            config=settings,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise unreachable(path, error) from error
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    new = {*report["missing_keys"], *(entry[0] for entry in report["mismatched_keys"])}
    body = [name for name in new if name.startswith(f"{model.base_model_prefix}.")]
    if body:
        logger.warning("%s lacks weights that start at random: %s", path, ", ".join(sorted(body)[:4]))
    return model, len(new) > len(body)


def _head_modules(classifier: PreTrainedModel) -> Iterator[nn.Module]:
    body = set(classifier.base_model.modules())
    return (module for module in classifier.modules() if module not in body and module is not classifier)


def _initialise_head(classifier: PreTrainedModel, *, seed: int) -> None:
    """The last linear layer of the head; layers before it keep the initialisation of their architecture."""
    outputs = [module for module in _head_modules(classifier) if isinstance(module, nn.Linear) and module.out_features == 1]
    assert outputs, f"{type(classifier).__name__} has no linear layer with one output"
    layer = outputs[-1]
    noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(seed))
    layer.weight.data = (noise / math.sqrt(layer.in_features + 1)).to(layer.weight.dtype)
    if layer.bias is not None:
        layer.bias.data.zero_()


def _with_tuning(classifier: PreTrainedModel, config: ModelConfig, adapter: str | None) -> PreTrainedModel | PeftModel:
    if isinstance(config.tuning, LoraTuning):
        return _with_lora(classifier, config.tuning, adapter)
    if adapter is not None:
        raise ValueError(
            "model.tuning.kind=full: model.path holds an adapter, and full tuning would leave it out; set model.tuning.kind=lora, or "
            "`rlhf export` it first"
        )
    if classifier.dtype != torch.float32:
        raise ValueError(f"model.dtype={config.dtype} cannot train in full; use float32, or model.tuning.kind=lora")
    return classifier


def _with_lora(classifier: PreTrainedModel, tuning: LoraTuning, adapter: str | None) -> PeftModel:
    """LoRA on every linear layer but the head, which trains in full (PEFT saves it with the adapter)."""
    if _is_decoder(classifier):
        classifier.score.float()  # What trains is float32, whatever the precision of the backbone.
    elif classifier.dtype != torch.float32:
        raise ValueError(f"model.dtype={str(classifier.dtype).removeprefix('torch.')}: an encoder's head trains inside the model; use float32")
    targets = tuning.target_modules
    shape = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=tuning.rank,
        lora_alpha=cast(int, tuning.alpha),  # Annotated int, but only ever divided by the rank.
        target_modules=targets if isinstance(targets, str) else list(targets),
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in classifier.modules()),
    )
    if adapter is not None:
        _require_same_base(adapter, classifier)
        shape = _shape_of(adapter)
        logger.info("the reward model starts from the adapter of model.path; its rank and alpha stay")
    try:
        model = cast(PeftModel, get_peft_model(classifier, shape))
    except ValueError as error:
        raise ValueError(f"model.tuning.target_modules={targets!r}: {str(error).splitlines()[0]}") from error
    if adapter is not None:
        unknown = set_peft_model_state_dict(model, load_peft_weights(adapter, device="cpu")).unexpected_keys
        if unknown:
            raise ValueError(f"model.path={adapter!r}: the adapter holds tensors that a reward model has no place for: {unknown[:3]}")
    return model


def _shape_of(adapter: str) -> LoraConfig:
    """The adapter's shape, for a reward model: its own base weights and dropout 0."""
    config = LoraConfig.from_pretrained(adapter)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"model.path={adapter!r}: an adapter of type {config.peft_type}; only LORA is supported")
    config.task_type, config.inference_mode, config.lora_dropout = TaskType.SEQ_CLS, False, 0.0
    return config


def _require_same_base(folder: str, classifier: PreTrainedModel) -> None:
    recorded = load_metadata(folder).get("base_fingerprint")
    if recorded is None:
        return
    own = base_fingerprint(classifier)
    if recorded != own:
        raise ValueError(
            f"adapter {folder!r} was trained on another base (fingerprint {recorded}, {classifier.name_or_path!r} has {own}); restore "
            "the base that it names, or train it again"
        )


def _require_distinct_pad(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """transformers finds the end of a padded sequence by the pad id: where that is eos, its classifiers read one token early."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"model.pad_token={tokenizer.pad_token!r} of {path!r} is also its eos_token, and a classifier loaded by transformers would "
            "read its score one token early; set model.pad_token to another token of the vocabulary"
        )
