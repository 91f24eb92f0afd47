"""The tokenizer: special tokens, prompt rendering, text <-> ids, identity.

Owns what the ids of a prompt and of a completion are: prompt ids begin with the special tokens that the tokenizer
puts in front (beginning of sequence), completion ids have none but the end-of-sequence token behind. It does not load
models.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from policies.config import ModelConfig, TokenizerKind
from policies.sources import ModelSource, resolve_source, unreachable
from policies.tokenizer_models import train_model

TokenIds = NDArray[np.int32]
Message = Mapping[str, Any]

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
"""One `role: content` line for each message; used where neither the config nor the tokenizer has a template."""

PAD_TOKEN, BOS_TOKEN, EOS_TOKEN = "<pad>", "<bos>", "<eos>"
"""Special tokens of a tokenizer trained here, ids 0, 1 and 2."""


def load_tokenizer(config: ModelConfig, *, field: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with the config's special tokens and chat template set on it.

    An adapter folder without tokenizer files takes the tokenizer of its base.

    Args:
        config: The model, and the tokens that its tokenizer lacks or names otherwise.
        field: Configuration section that errors name.

    Raises:
        ValueError: if there is no tokenizer, an override is not in the vocabulary, or pad or eos is missing.
    """
    tokenizer = _from_source(resolve_source(config.path))
    for name in ("eos_token", "pad_token"):
        override = getattr(config, name)
        if override is not None:
            _require_in_vocabulary(tokenizer, f"{field}.{name}", override)
            setattr(tokenizer, name, override)
        elif getattr(tokenizer, name) is None:
            raise ValueError(
                f"{field}.{name}: the tokenizer of {config.path!r} has none; set {field}.{name} to a token of its "
                f"vocabulary ({_examples(tokenizer)})"
            )
    if config.chat_template is not None:
        tokenizer.chat_template = config.chat_template
    return tokenizer


def load_tokenizer_folder(path: str, *, field: str) -> PreTrainedTokenizerBase:
    """A tokenizer that lies alone in a folder.

    Args:
        path: The folder.
        field: Configuration key that errors name.

    Raises:
        ValueError: if there is none, or it lacks a padding or end-of-sequence token.
    """
    if not (Path(path) / "tokenizer_config.json").is_file():
        raise ValueError(f"{field}={path!r}: no folder with tokenizer_config.json; name that of a saved tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(path)
    for name in ("eos_token", "pad_token"):
        if getattr(tokenizer, name) is None:
            raise ValueError(f"{field}={path!r}: the tokenizer has no {name}; set one and save it again")
    return tokenizer


def render_prompt(
    prompt: str | Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, chat_template: str | None = None
) -> str:
    """The text a policy is conditioned on: plain text as it is, messages through the chat template.

    The result ends with the template's generation prompt, and lacks a leading beginning-of-sequence token where the
    tokenizer adds one itself (`encode_prompt`), so that it is not doubled.

    Args:
        prompt: text, or messages with `role` and `content`.
        tokenizer: whose template applies when none is given.
        chat_template: Jinja template; None takes the tokenizer's own, else `PLAIN_CHAT_TEMPLATE`.
    """
    if isinstance(prompt, str):
        return prompt
    template = chat_template or tokenizer.chat_template or PLAIN_CHAT_TEMPLATE
    messages = [dict(message) for message in prompt]
    text = cast(
        str,
        tokenizer.apply_chat_template(
            messages, chat_template=cast(str, template), add_generation_prompt=True, tokenize=False
        ),
    )
    bos = tokenizer.bos_token
    if isinstance(bos, str) and text.startswith(bos) and _special_prefix(tokenizer) == [tokenizer.bos_token_id]:
        return text.removeprefix(bos)
    return text


def encode_prompt(text: str, tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """(P,) ids of a rendered prompt, with the special tokens that the tokenizer puts in front and none behind.

    Raises:
        ValueError: if nothing is left, because the text is empty and the tokenizer has no beginning-of-sequence token.
    """
    ids = _ids(text, tokenizer, add_special_tokens=True)
    if (
        not ids or ids[-1] in tokenizer.all_special_ids
    ):  # A special token behind the text would end the prompt: rebuild it.
        ids = _special_prefix(tokenizer) + _ids(text, tokenizer, add_special_tokens=False)
    if not ids:
        raise ValueError(
            "the prompt is empty and the tokenizer adds no beginning-of-sequence token; give at least one token"
        )
    return np.array(ids, dtype=np.int32)


def encode_completion(text: str, tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """(R,) ids of a response: its text without special tokens in front, then the end-of-sequence token."""
    return np.array([*_ids(text, tokenizer, add_special_tokens=False), tokenizer.eos_token_id], dtype=np.int32)


def decode(ids: Sequence[int] | NDArray[np.integer[Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Text of token ids, special tokens left out."""
    return cast(
        str,
        tokenizer.decode([int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False),
    )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the token <-> id mapping: equal ids mean equal tokens exactly when two fingerprints are equal."""
    mapping = sorted(tokenizer.get_vocab().items(), key=lambda entry: (entry[1], entry[0]))
    return hashlib.sha256(json.dumps(mapping).encode()).hexdigest()[:32]


def train_tokenizer(
    texts: Iterable[str], *, vocabulary_size: int, kind: TokenizerKind = "bpe"
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on text; it has every byte, so any text can be encoded and decoded back.

    It puts `<bos>` in front of a prompt, and has `<eos>` and a `<pad>` of its own.

    Args:
        texts: training corpus.
        vocabulary_size: upper bound of the number of tokens, the three special ones and the 256 bytes included.
        kind: see `policies.tokenizer_models`.

    Raises:
        ValueError: if the vocabulary is too small for the kind.
    """
    special_tokens = (PAD_TOKEN, BOS_TOKEN, EOS_TOKEN)
    backend = train_model(texts, kind, vocabulary_size=vocabulary_size, special_tokens=special_tokens)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A", special_tokens=[(BOS_TOKEN, backend.token_to_id(BOS_TOKEN))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD_TOKEN, bos_token=BOS_TOKEN, eos_token=EOS_TOKEN
    )


def _from_source(source: ModelSource) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where its folder has one (PEFT writes none), else the base's."""
    own = source.adapter is not None and (Path(source.adapter) / "tokenizer_config.json").is_file()
    place = source.path if own else source.base
    try:
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise unreachable(place, error) from error


def _require_in_vocabulary(tokenizer: PreTrainedTokenizerBase, field: str, token: str) -> None:
    if token not in tokenizer.get_vocab():
        raise ValueError(
            f"{field}={token!r} is not in the tokenizer's vocabulary; choose a token that is ({_examples(tokenizer)})"
        )


def _examples(tokenizer: PreTrainedTokenizerBase) -> str:
    known = list(tokenizer.all_special_tokens) or sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    return "for instance " + ", ".join(repr(token) for token in known[:4])


def _ids(text: str, tokenizer: PreTrainedTokenizerBase, *, add_special_tokens: bool) -> list[int]:
    # verbose=False: whether a prompt is too long is judged, with its row, by whoever read the data.
    return list(cast(list[int], tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]))


def _special_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Special ids that the tokenizer puts in front of a text (usually the beginning-of-sequence token, or none)."""
    plain = _ids("a", tokenizer, add_special_tokens=False)
    full = _ids("a", tokenizer, add_special_tokens=True)
    starts = [i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain]
    return full[: starts[0]] if starts else []
