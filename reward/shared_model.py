"""A reward model on somebody else's base: adapter and head of a trained one, on the backbone that the policy lives on.

Owns the test whether a reward-model folder can share a base, and what a critic takes from it. Training and stand-alone
scoring are `reward.model`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from peft.utils import load_peft_weights
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.checkpoint import load_metadata
from policies.config import ModelConfig
from policies.scalar_head import ScalarHead
from policies.sources import resolve_source
from policies.tokenization import load_tokenizer
from reward.model import last_tokens, read_mask
from reward.normalization import NORMALIZER_FILE, Normalizer

_HEAD_KEY = "base_model.model.score.weight"
"""Name under which PEFT saves the head of a decoder with a classification adapter."""


@dataclass(frozen=True, slots=True)
class SharedParts:
    """What a reward model on a shared base consists of.

    Attributes:
        folder: Folder of the adapter.
        base_fingerprint: Identity of the base it was trained on.
        head_weight: (D,) float32.
        normalizer: Scale of its scores; None where the folder has none.
    """

    folder: str
    base_fingerprint: str
    head_weight: Tensor
    normalizer: Normalizer | None


def shared_parts(folder: str) -> SharedParts | None:
    """The parts of a reward-model folder that can share a base.

    None where it holds full weights or an encoder, or does not record which base it was trained on.
    """
    if resolve_source(folder).adapter is None:
        return None
    fingerprint = load_metadata(folder).get("base_fingerprint")
    weight = load_peft_weights(folder, device="cpu").get(_HEAD_KEY)
    if fingerprint is None or weight is None:
        return None
    has_scale = (Path(folder) / NORMALIZER_FILE).is_file()
    return SharedParts(folder, fingerprint, weight.reshape(-1).float(), Normalizer.load(folder) if has_scale else None)


class SharedRewardModel:
    """The same scores as `RewardModel.from_folder`, without a second base in memory. Scores only; it does not train.

    Args:
        backbone: Carries the adapter from here on.
        parts: From `shared_parts`.
        adapter: Name that the adapter gets on the backbone.

    Raises:
        ValueError: the name is taken, or the adapter was trained on another base.
    """

    def __init__(self, backbone: Backbone, parts: SharedParts, *, adapter: str) -> None:
        backbone.adapters.load(adapter, parts.folder)
        self._backbone, self._adapter = backbone, adapter
        self._head = ScalarHead.from_tensors(parts.head_weight).requires_grad_(requires_grad=False).to(backbone.device)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(ModelConfig(path=parts.folder))
        self.device: torch.device = backbone.device

    @property
    def context_tokens(self) -> int:
        """Longest sequence that the backbone has positions for."""
        return self._backbone.context_tokens

    def raw_scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(M, T) right-padded ids and their mask -> (M,) float32; see `reward.model.RewardModel.raw_scores`."""
        last = last_tokens(read_mask(input_ids, attention_mask, self.tokenizer))[:, None]
        is_read = torch.arange(input_ids.shape[1], device=input_ids.device) == last
        with self._backbone.adapters.use(self._adapter):
            hidden = self._backbone.row_states(input_ids, attention_mask, read=is_read)
        return cast(Tensor, self._head(hidden[is_read]))
