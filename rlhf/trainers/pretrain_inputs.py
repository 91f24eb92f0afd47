"""What `rlhf pretrain` starts from: documents, held-out documents, and a model with its tokenizer.

Owns reading and building. The loop is `pretrain`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from policies.backbone import Backbone
from policies.checkpoint import atomic_folder
from policies.config import ModelConfig
from policies.loading import load_backbone, random_backbone, resolve_device
from policies.tokenization import load_tokenizer_folder, train_tokenizer
from rlhf.config import PretrainConfig, PretrainModelConfig
from rlhf.data import load_rows
from rlhf.text_stream import TokenIds, encode_documents, require_texts

TOKENIZER_FOLDER = "tokenizer"
"""Folder of run_dir with the tokenizer that a run has trained."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PretrainInputs:
    """The data and the model of a run, ready to train.

    Attributes:
        texts: Training documents.
        held_out: Held-out documents as token ids; empty without `data.eval`.
        skipped: One line for each row that `on_bad_row=skip` left out.
        backbone: The model, from random weights or from `model.path`.
    """

    texts: Sequence[str]
    held_out: Sequence[TokenIds]
    skipped: Sequence[str]
    backbone: Backbone


def read_inputs(config: PretrainConfig, *, resume: bool) -> PretrainInputs:
    """Reads the data and builds the model that a configuration names; with `resume`, on the tokenizer of its start.

    Raises:
        ValueError: what the user can fix.
    """
    texts, skipped = _texts(config, config.data.train, "data.train")
    held_out: list[str] = []
    if config.data.eval is not None:
        held_out, more = _texts(config, config.data.eval, "data.eval")
        skipped += more
    trained = Path(config.run_dir) / TOKENIZER_FOLDER
    backbone = build_backbone(config.model, texts, seed=config.seed, trained_tokenizer=trained if resume else None)
    _require_context(config.sequence_tokens, backbone)
    for line in skipped:
        logger.warning("skipped %s", line)
    encoded = encode_documents(held_out, backbone.tokenizer, max_tokens=backbone.context_tokens)
    return PretrainInputs(texts, encoded, skipped, backbone)


def _texts(config: PretrainConfig, source: str, field: str) -> tuple[list[str], list[str]]:
    rows = load_rows(source, field=field)
    return require_texts(rows, source=f"{field}={source}", on_bad_row=config.data.on_bad_row)


def build_backbone(
    config: PretrainModelConfig, texts: Sequence[str], *, seed: int, trained_tokenizer: Path | None = None
) -> Backbone:
    """The model to train: loaded from `path`, or random with the tokenizer that `tokenizer` says.

    Args:
        config: The model.
        texts: What a new tokenizer is trained on.
        seed: Of random weights.
        trained_tokenizer: Folder that holds the new tokenizer once it has been trained.

    Raises:
        ValueError: what the user can fix.
    """
    if config.path is not None:
        return load_backbone(ModelConfig(path=config.path, device=config.device))
    assert config.architecture is not None, "the config has checked that there is a path or an architecture"
    if trained_tokenizer is not None and trained_tokenizer.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer)
    elif config.new_tokenizer is None:
        tokenizer = load_tokenizer_folder(str(config.tokenizer), field="model.tokenizer")
    else:
        assert config.vocabulary_size is not None, "the config has checked that a new tokenizer has a size"
        tokenizer = train_tokenizer(texts, vocabulary_size=config.vocabulary_size, kind=config.new_tokenizer)
    tokenizer.model_max_length = config.architecture.context_tokens
    return random_backbone(config.architecture, tokenizer, seed=seed, device=resolve_device(config.device))


def keep_tokenizer(target: Path, config: PretrainConfig, backbone: Backbone) -> None:
    """Writes the tokenizer that a run has trained, once, for `--resume`: training it again may give another."""
    if config.model.new_tokenizer is not None and not target.is_dir():
        with atomic_folder(target) as aside:
            backbone.tokenizer.save_pretrained(aside)


def _require_context(sequence_tokens: int, backbone: Backbone) -> None:
    if sequence_tokens > backbone.context_tokens:
        raise ValueError(
            f"sequence_tokens={sequence_tokens} exceeds the model's context of {backbone.context_tokens} tokens; "
            "lower it, or raise model.architecture.context_tokens"
        )
