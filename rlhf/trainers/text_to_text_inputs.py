"""What `rlhf text-to-text` learns from: pairs of input and target, as token ids.

Owns reading and the spans of each pass over the text. The loop is `text_to_text`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from policies.config import FullTuning, LoraTuning
from policies.encoder_decoder import EncoderDecoder, add_sentinels, load_encoder_decoder, random_encoder_decoder
from policies.loading import resolve_device
from policies.sequences import TokenIds
from policies.tokenization import encode_completion, encode_prompt, train_tokenizer
from rlhf.config import SpanCorruption, TextToTextConfig
from rlhf.data import load_rows
from rlhf.evaluation.tasks import Task, read_task
from rlhf.span_corruption import corrupt, noise_spans
from rlhf.text_stream import require_texts
from rollout.noise import keyed_generator

logger = logging.getLogger(__name__)

Pair = tuple[TokenIds, TokenIds]


@dataclass(frozen=True, slots=True)
class TextToTextInputs:
    """The data and the model of a run.

    Attributes:
        model: The model.
        train: Training pairs; of span corruption, pieces of text whose target is still empty.
        held_out: Held-out pairs; empty without `data.eval`.
        tasks: What is asked at the end.
        skipped: One line for each row that `on_bad_row=skip` left out.
    """

    model: EncoderDecoder
    train: Sequence[Pair]
    held_out: Sequence[Pair]
    tasks: Sequence[Task]
    skipped: Sequence[str]


def read_inputs(config: TextToTextConfig) -> TextToTextInputs:
    """Reads the data and builds the model.

    Raises:
        ValueError: what the user can fix.
    """
    train = load_rows(config.data.train, field="data.train")
    skipped: list[str] = []
    texts = _texts_of(config, train)
    model = _model(config, texts)
    if max(config.max_input_tokens, config.max_target_tokens) > model.context_tokens:
        raise ValueError(
            f"max_input_tokens={config.max_input_tokens} or max_target_tokens={config.max_target_tokens} exceeds the "
            f"model's context of {model.context_tokens} tokens; lower it, or raise model.architecture.context_tokens"
        )
    pairs = _pairs(config, model, train, "data.train", skipped)
    held_out: list[Pair] = []
    if config.data.eval is not None:
        rows = load_rows(config.data.eval, field="data.eval")
        held_out = [
            corrupted(config, model, pair, "held out", index)
            for index, pair in enumerate(_pairs(config, model, rows, "data.eval", skipped))
        ]
    tasks = [
        read_task(load_rows(source, field="data.tasks"), source=source, on_bad_row=config.data.on_bad_row)
        for source in config.data.tasks
    ]
    for line in skipped:
        logger.warning("skipped %s", line)
    return TextToTextInputs(model, pairs, held_out, tasks, skipped)


def corrupted(config: TextToTextConfig, model: EncoderDecoder, pair: Pair, *key: object) -> Pair:
    """A pair as it is trained on: of a piece of text, with spans that are a function of seed and key."""
    if not isinstance(config.objective, SpanCorruption):
        return pair
    tokens, objective = pair[0].astype(np.int32), config.objective
    rng = keyed_generator("span corruption", config.seed, "/".join(map(str, key)))
    spans = noise_spans(
        len(tokens), noise_density=objective.noise_density, mean_span_tokens=objective.mean_span_tokens, rng=rng
    )
    return corrupt(tokens, spans, model.sentinel_ids, end=cast(int, model.tokenizer.eos_token_id))


def input_ids(text: str, model: EncoderDecoder) -> TokenIds:
    """Ids of an input: the prompt and the end-of-sequence token."""
    return np.array([*encode_prompt(text, model.tokenizer), model.tokenizer.eos_token_id], dtype=np.int32)


def _model(config: TextToTextConfig, texts: Sequence[str]) -> EncoderDecoder:
    wanted, device = config.model, resolve_device(config.model.device)
    if wanted.path is not None:
        loaded = load_encoder_decoder(wanted.path, device)
        loaded.tune(cast(FullTuning | LoraTuning, wanted.tuning), seed=config.seed)
        return loaded
    assert wanted.architecture is not None and wanted.vocabulary_size is not None, "the config has checked both"  # noqa: PT018
    tokenizer = train_tokenizer(texts, vocabulary_size=wanted.vocabulary_size, kind=wanted.tokenizer)
    add_sentinels(tokenizer, wanted.sentinels)
    tokenizer.model_max_length = wanted.architecture.context_tokens
    return random_encoder_decoder(wanted.architecture, tokenizer, seed=config.seed, device=device)


def _texts_of(config: TextToTextConfig, rows: Sequence[dict[str, Any]]) -> list[str]:
    """What a new tokenizer is trained on."""
    if isinstance(config.objective, SpanCorruption):
        source = f"data.train={config.data.train}"
        texts, _ = require_texts(rows, source=source, on_bad_row=config.data.on_bad_row)
        return texts
    return [str(row.get(field, "")) for row in rows for field in ("prompt", "completion")]


def _pairs(
    config: TextToTextConfig, model: EncoderDecoder, rows: Sequence[dict[str, Any]], field: str, skipped: list[str]
) -> list[Pair]:
    source = f"{field}={getattr(config.data, field.removeprefix('data.'))}"
    if isinstance(config.objective, SpanCorruption):
        texts, left_out = require_texts(rows, source=source, on_bad_row=config.data.on_bad_row)
        skipped += left_out
        pairs = _pieces(config, config.objective, model, texts)
    else:
        pairs = _demonstrations(config, model, rows, source, skipped)
    if not pairs:
        raise ValueError(f"{source}: no row is left to learn from; give longer texts, or rows within the limits")
    return pairs


def _pieces(
    config: TextToTextConfig, objective: SpanCorruption, model: EncoderDecoder, texts: Sequence[str]
) -> list[Pair]:
    """Texts cut into pieces that fit as an input, of two tokens or more."""
    room = config.max_input_tokens - 1
    noise = round(room * objective.noise_density)
    spans = max(round(noise / objective.mean_span_tokens), 1)
    if spans + 1 > len(model.sentinel_ids) or noise + spans + 2 > config.max_target_tokens:
        raise ValueError(
            f"objective: inputs of {room} tokens have up to {spans} spans of {noise} tokens together; that needs "
            f"{spans + 1} sentinels (the tokenizer has {len(model.sentinel_ids)}) and max_target_tokens of at least "
            f"{noise + spans + 2} (it is {config.max_target_tokens}); lower max_input_tokens, or raise "
            "model.sentinels or max_target_tokens"
        )
    encoded = cast(list[list[int]], model.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"])
    empty = np.array([], dtype=np.int32)
    return [
        (np.array(ids[start : start + room], dtype=np.int32), empty)
        for ids in encoded
        for start in range(0, len(ids), room)
        if len(ids) - start >= 2
    ]


def _demonstrations(
    config: TextToTextConfig, model: EncoderDecoder, rows: Sequence[dict[str, Any]], source: str, skipped: list[str]
) -> list[Pair]:
    pairs: list[Pair] = []
    for number, row in enumerate(rows):
        pair, problem = _demonstration(config, model, row)
        if pair is not None:
            pairs.append(pair)
            continue
        line = f"{source}, row {number}: {problem}"
        if config.data.on_bad_row == "error":
            raise ValueError(f"{line}; or set data.on_bad_row=skip")
        skipped.append(line)
    return pairs


def _demonstration(config: TextToTextConfig, model: EncoderDecoder, row: dict[str, Any]) -> tuple[Pair | None, str]:
    for field in ("prompt", "completion"):
        if not isinstance(row.get(field), str) or not row[field].strip():
            return None, f"{field} is {row.get(field)!r}; text of at least one character is needed"
    source, target = input_ids(row["prompt"], model), encode_completion(row["completion"], model.tokenizer)
    for ids, limit in ((source, "max_input_tokens"), (target, "max_target_tokens")):
        if len(ids) > getattr(config, limit):
            return None, f"{len(ids)} tokens are more than {limit}={getattr(config, limit)}: shorten it or raise it"
    return (source, target), ""
