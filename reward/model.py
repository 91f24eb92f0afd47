"""The learned reward model: a sequence-classification backbone with one output, in full or with LoRA.

Owns where the score is read, what trains, and the folder that plain transformers and PEFT load again. Loading of
backbones is `reward.classifiers`; turning requests into token ids is `reward.scoring`; sharing a base with a policy is
`reward.shared_model`.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import Parameter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.attention import UnsupportedAttentionError, attention_implementation, trains_faster_unfused
from policies.base_identity import about_base, base_fingerprint, copy_exactly
from policies.checkpoint import METADATA_FILE, atomic_folder, load_metadata
from policies.config import ModelConfig
from policies.final_layer import computed_only_at, final_parts, follow_readers
from policies.loading import resolve_device
from policies.rms_norm import use_fast_norms
from policies.rotary_attention import use_fast_attention
from policies.shared_prefix import SharedPrefixBatch, pack_groups
from policies.shared_prefix_attention import shared_prefix_attention, supports_shared_prefix
from policies.sources import resolve_source
from policies.tokenization import load_tokenizer, tokenizer_fingerprint
from reward.classifiers import (
    Classifier,
    initialise_head,
    is_decoder,
    load_classifier,
    require_complete,
    require_head,
    require_same_base,
    score_in_float32,
    with_tuning,
)
from reward.normalization import Normalizer

logger = logging.getLogger(__name__)

_PROBE_LENGTHS = (6, 3)
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer"})
"""Model types that number positions from pad_token_id + 1, and so can read that many tokens less."""


class RewardModel:
    """r(x, y): one number for a token sequence, read at its last real token where the backbone is a decoder.

    An encoder's score comes from its own classification head. Dropout is off for good (the model stays in eval mode).

    Attributes:
        tokenizer: Its tokenizer.
        device: Where the model lives.
        shares_prefixes: Whether `raw_group_scores` works, and exactly: it was tried.
    """

    def __init__(self, model: Classifier, tokenizer: PreTrainedTokenizerBase) -> None:
        """Wraps a model that is already on its device.

        Raises:
            ValueError: if padding changes its scores, or reading at the last token is not what its own forward does.
        """
        self._model = model.eval()
        self._classifier = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
        self._body = cast(PreTrainedModel, self._classifier.base_model)
        self.tokenizer = tokenizer
        self.device = self._classifier.device
        self._reads_last_token = is_decoder(self._classifier)
        if self._reads_last_token:
            follow_readers(final_parts(self._body))
        use_fast_norms(self._classifier)
        use_fast_attention(self._classifier)
        score_in_float32(self._classifier)
        self._require_same_scores()
        self.shares_prefixes = self._can_share_prefixes()

    @classmethod
    def new(cls, config: ModelConfig, *, seed: int) -> "RewardModel":
        """A reward model to train, on the backbone that `config` names.

        An adapter folder gives its base and, with LoRA tuning, the adapter's weights as the start. A new head has
        weights from N(0, 1 / (D + 1)) and bias 0.

        Args:
            config: Backbone, precision, device and what trains.
            seed: Draws head and LoRA weights.

        Raises:
            ValueError: if the backbone cannot be loaded, cannot train as asked, or pads with its end-of-sequence token.
        """
        source = resolve_source(config.path)
        tokenizer = load_tokenizer(config)
        _require_distinct_pad(tokenizer, config.path)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            loaded = load_classifier(
                source.base,
                dtype=config.dtype,
                attention=config.attention,
                tokenizer=tokenizer,
                quantization=config.quantization,
                device=resolve_device(config.device),
            )
            if loaded.has_new_head:
                initialise_head(loaded.model, seed=seed)
            model = with_tuning(loaded, config, adapter=source.adapter)
        return cls(cast(Any, model).to(resolve_device(config.device)), tokenizer)

    @classmethod
    def from_folder(
        cls,
        path: str,
        *,
        device: str = "auto",
        dtype: str = "float32",
        eos_token: str | None = None,
        pad_token: str | None = None,
    ) -> "RewardModel":
        """A trained reward model: a folder that `save` wrote, or any classifier with one label.

        Args:
            path: Folder or hub name of a classifier, or of an adapter with its head.
            device: Device; "auto" takes the GPU that the process sees, else the CPU.
            dtype: Precision of the backbone's weights.
            eos_token: Overrides the tokenizer's end-of-sequence token; None keeps it.
            pad_token: Overrides the tokenizer's padding token; None keeps it.

        Raises:
            ValueError: if it has no trained head with one output, or its adapter was trained on another base.
        """
        source = resolve_source(path)
        tokenizer = load_tokenizer(ModelConfig(path=path, eos_token=eos_token, pad_token=pad_token), field="reward")
        # An adapter knows on which format of its base it was trained.
        about = {} if source.adapter is None else load_metadata(source.adapter)
        loaded = load_classifier(
            source.base,
            dtype=dtype,
            attention="sdpa",
            tokenizer=tokenizer,
            quantization=about.get("base_quantization", "none"),
            device=resolve_device(device),
        )
        model: Classifier = loaded.model
        if source.adapter is None:
            require_complete(loaded, path)
        else:
            require_same_base(source.adapter, loaded.model)
            require_head(source.adapter, loaded)
            model = PeftModel.from_pretrained(loaded.model, source.adapter)
        return cls(cast(Any, model).to(resolve_device(device)), tokenizer)

    @property
    def context_tokens(self) -> int:
        """Longest sequence that the backbone has positions for."""
        config = self._classifier.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        reserved = config.pad_token_id + 1 if config.model_type in _OFFSET_POSITIONS else 0
        return int(min(limit - reserved, 2**31 - 1))

    @property
    def classifier(self) -> PreTrainedModel:
        """The classifier of transformers, with what hangs on it."""
        return self._classifier

    @property
    def is_adapter(self) -> bool:
        """Whether LoRA and head are saved, rather than the whole model."""
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
        read = last_tokens(read_mask(input_ids, attention_mask, self.tokenizer))
        # No token of a decoder sees the padding on its right, and without a mask the fastest kernels apply.
        return self._scores_at(read + torch.arange(len(read), device=read.device) * input_ids.shape[1], input_ids)

    def raw_group_scores(self, batch: SharedPrefixBatch) -> Tensor:
        """Scores before normalisation of S sequences whose groups' common beginnings are read once.

        Returns:
            (S,) float32, with gradients where they are enabled; equal to `raw_scores` of the sequences.
        """
        assert self.shares_prefixes, "score the sequences with raw_scores"
        with shared_prefix_attention(self._classifier):
            return self._scores_at(batch.last_index, batch.input_ids, position_ids=batch.position_ids, packing=batch)

    def _scores_at(self, tokens: Tensor, input_ids: Tensor, **layout: Tensor | SharedPrefixBatch) -> Tensor:
        """(S,) scores at places in the (M * T) tokens of a decoder's input."""
        with computed_only_at(tokens):
            hidden = self._body(input_ids=input_ids, use_cache=False, **layout).last_hidden_state
        head = cast(nn.Module, self._classifier.score)
        states = hidden.flatten(0, 1)[tokens]
        return head(states.to(next(head.parameters()).dtype)).squeeze(-1).float()

    def attention_for(self, tokens: int) -> AbstractContextManager[None]:
        """A context in which padded rows of up to so many tokens train fastest, in the precision in force."""
        is_reduced = torch.is_autocast_enabled(self.device.type)
        dtype = torch.get_autocast_dtype(self.device.type) if is_reduced else self._classifier.dtype
        is_faster = trains_faster_unfused(self.device, dtype, tokens)
        return attention_implementation(self._classifier, "eager" if is_faster else None)

    @property
    def fingerprint(self) -> str:
        """Identity of the body's weights as they are now (`policies.base_identity`); reads all of them."""
        return base_fingerprint(self._classifier)

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
        """Writes, atomically, a folder that transformers (or PEFT) loads, with tokenizer, scale and metadata beside it.

        An adapter's metadata holds the fingerprint of its base, so that it is never loaded on another one.
        """
        about = {**metadata, "kind": "reward_model", "tokenizer_fingerprint": tokenizer_fingerprint(self.tokenizer)}
        if self.is_adapter:
            about |= about_base(self._classifier, self.fingerprint)
        with atomic_folder(folder) as aside:
            self._model.save_pretrained(str(aside))
            self.tokenizer.save_pretrained(str(aside))
            normalizer.save(aside)
            (aside / METADATA_FILE).write_text(json.dumps(about, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @torch.no_grad()
    def _require_same_scores(self) -> None:
        """Compares the scores of padded rows with transformers' own output on unpadded rows, once."""
        pad, eos = cast(int, self.tokenizer.pad_token_id), cast(int, self.tokenizer.eos_token_id)
        ids = [*[i for i in range(_PROBE_LENGTHS[0] + 2) if i not in (pad, eos)][: _PROBE_LENGTHS[0] - 1], eos]
        rows = [torch.tensor([ids[-length:]], device=self.device) for length in _PROBE_LENGTHS]
        reduced = self._classifier.dtype != torch.float32
        # A float32 head on a reduced body is ours; transformers' own forward needs autocast for it.
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=reduced):
            expected = torch.cat([self._classifier(input_ids=row).logits.reshape(-1).float() for row in rows])
        padded = torch.full((len(rows), len(ids)), pad, device=self.device)
        for row, length, target in zip(rows, _PROBE_LENGTHS, padded, strict=True):
            target[:length] = row[0]
        mask = torch.arange(len(ids), device=self.device) < torch.tensor(_PROBE_LENGTHS, device=self.device)[:, None]
        received = self.raw_scores(padded, mask)
        tolerance = 3e-2 if reduced else 1e-4
        if not torch.allclose(received, expected, rtol=tolerance, atol=tolerance):
            gap = float((received - expected).abs().max())
            raise ValueError(
                f"model.path={self._classifier.name_or_path!r}: padding changes the scores of "
                f"{type(self._classifier).__name__} by {gap:.2g}; this architecture is not supported"
            )

    @torch.no_grad()
    def _can_share_prefixes(self) -> bool:
        """Whether two short groups get the scores that their sequences have on their own."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        if not self._reads_last_token or pad == eos or not supports_shared_prefix(self._classifier):
            return False
        ids = [i for i in range(12) if i not in (pad, eos)]
        groups = [[[*ids[:3], ids[4], eos], [*ids[:3], eos]], [[*ids[5:7], eos], [ids[5], *ids[7:9], eos]]]
        packed = pack_groups([[np.array(sequence) for sequence in group] for group in groups], self.device)
        alone = [torch.tensor([sequence], device=self.device) for group in groups for sequence in group]
        expected = torch.cat([self.raw_scores(row, torch.ones_like(row, dtype=torch.bool)) for row in alone])
        self.shares_prefixes = True
        try:
            received = self.raw_group_scores(packed)
        except UnsupportedAttentionError as error:
            logger.info("common beginnings are read for each response: %s", error)
            return False
        tolerance = 3e-2 if self._classifier.dtype != torch.float32 else 1e-4
        return torch.allclose(received, expected, rtol=tolerance, atol=tolerance)


def read_mask(input_ids: Tensor, attention_mask: Tensor, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(M, T) ids and mask of right-padded rows -> (M, T) mask of the tokens up to the one that is read.

    That is the last real token. Where end of sequence pads too, transformers cannot tell them apart and reads the last
    token that is neither, and so did whoever trained such a model (TRL does, where a tokenizer has no padding token).
    """
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return attention_mask
    others = attention_mask & (input_ids != tokenizer.pad_token_id)
    return others.flip(1).cumsum(1).flip(1) > 0


def last_tokens(mask: Tensor) -> Tensor:
    """(M, T) mask of right-padded rows -> (M,) long, column of the last token in the mask, 0 where there is none."""
    return (mask.long().sum(dim=1) - 1).clamp(min=0)


def _require_distinct_pad(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """The classifiers of transformers find the end of a padded row by the pad id: were that eos, one token early."""
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"model.pad_token={tokenizer.pad_token!r} of {path!r} is also its eos_token, so transformers would read "
            "the score of the saved model one token early; set model.pad_token to another token of the vocabulary"
        )
