"""A small model trained with a tokenizer, and its held-out loss per byte.

Nats per token cannot be compared between tokenizers, whose tokens hold unlike much; nats per byte of the same text can.
Every model sees the same pieces of text in the same order, from the same seed; what differs is the tokenizer, and with
it the size of the embeddings and the number of tokens. The loop is that of `rlhf pretrain`.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from policies.loading import random_backbone, resolve_device
from rlhf.config import PretrainConfig
from rlhf.text_stream import encode_documents
from rlhf.tokenizer_comparison.config import TokenizersConfig, TrialConfig
from rlhf.trainers.pretrain import Pretrainer
from rlhf.trainers.pretrain_inputs import PretrainInputs

_WORD_WITH_SPACE = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """The small model of one tokenizer.

    Attributes:
        bits_per_byte: Held-out loss, end-of-sequence tokens included, divided by the bytes of the text.
        loss: The same in nats per token.
        parameters: Weights of the model.
        train_tokens: Tokens it was trained on.
    """

    bits_per_byte: float
    loss: float
    parameters: int
    train_tokens: int


def run_trial(
    config: TokenizersConfig, trial: TrialConfig, tokenizer: PreTrainedTokenizerBase, train: Sequence[str],
    held_out: Sequence[str],
) -> TrialOutcome:  # fmt: skip
    """Trains the model on the pieces of `train` and measures it on those of `held_out`.

    Raises:
        ValueError: a piece has more tokens than the context.
    """
    backbone = random_backbone(trial.architecture, tokenizer, seed=config.seed, device=resolve_device(config.device))
    encoded = encode_documents(held_out, tokenizer)
    longest = max(len(ids) for ids in encode_documents(train, tokenizer))
    if longest > trial.architecture.context_tokens:
        raise ValueError(
            f"trial.piece_bytes={trial.piece_bytes}: a piece has {longest} tokens, the context "
            f"{trial.architecture.context_tokens}; lower piece_bytes, or raise trial.architecture.context_tokens"
        )
    trainer = Pretrainer(_loop(config, trial), PretrainInputs(train, encoded, [], backbone), None)
    trainer.train()
    measured = trainer.evaluate()["eval/loss"]
    nats = measured * sum(len(ids) - 1 for ids in encoded)
    return TrialOutcome(
        bits_per_byte=nats / math.log(2) / sum(len(text.encode()) for text in held_out),
        loss=measured,
        parameters=sum(parameter.numel() for parameter in backbone.model.parameters()),
        train_tokens=trainer.tokens,
    )


def cut(texts: Iterable[str], piece_bytes: int) -> list[str]:
    """Documents cut in front of words into pieces of at most so many bytes; a longer word is cut, too.

    Joined, the pieces are the documents.
    """
    return [piece for text in texts for piece in _pieces(text, piece_bytes)]


def _pieces(text: str, piece_bytes: int) -> list[str]:
    pieces: list[str] = []
    for word in _WORD_WITH_SPACE.findall(text):
        for part in _short_parts(word, piece_bytes):
            if pieces and len((pieces[-1] + part).encode()) <= piece_bytes:
                pieces[-1] += part
            else:
                pieces.append(part)
    return pieces


def _short_parts(word: str, piece_bytes: int) -> list[str]:
    if len(word.encode()) <= piece_bytes:
        return [word]
    # No character has more than four bytes.
    step = max(piece_bytes // 4, 1)
    return [word[start : start + step] for start in range(0, len(word), step)]


def _loop(config: TokenizersConfig, trial: TrialConfig) -> PretrainConfig:
    return PretrainConfig.model_validate({
        "run_dir": config.run_dir,
        "seed": config.seed,
        "model": {"architecture": trial.architecture, "vocabulary_size": 2**20, "device": config.device},
        "data": {"train": config.data.train},
        "packing": "documents",
        "sequence_tokens": trial.architecture.context_tokens,
        "sequences_per_step": trial.pieces_per_step,
        "steps": trial.steps,
        "eval_every_steps": trial.steps,
        "optimizer": trial.optimizer,
        "tracking": {"wandb": "off"},
    })  # fmt: skip
