"""What a tokenizer makes of held-out text: how many tokens, which unknown, and whether the text comes back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from policies.tokenization import decode


@dataclass(frozen=True, slots=True)
class TokenizerMeasures:
    """One tokenizer on held-out text, without special tokens.

    Attributes:
        vocabulary: Tokens it has.
        used: Different tokens that occurred.
        fertility: Tokens for each word, where words are what stands between white space.
        bytes_per_token: UTF-8 bytes for each token.
        unknown_rate: Share of tokens that stand for something it does not know.
        round_trip_rate: Share of documents that decoding gives back exactly.
    """

    vocabulary: int
    used: int
    fertility: float
    bytes_per_token: float
    unknown_rate: float
    round_trip_rate: float


def measure_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> TokenizerMeasures:
    """The measures on documents of at least one word together."""
    encoded = [token_ids(text, tokenizer) for text in texts]
    tokens = sum(map(len, encoded))
    unknown = cast(int | None, tokenizer.unk_token_id)
    returned = sum(decode(ids, tokenizer) == text for ids, text in zip(encoded, texts, strict=True))
    return TokenizerMeasures(
        vocabulary=len(tokenizer),
        used=len({token for ids in encoded for token in ids}),
        fertility=tokens / sum(len(text.split()) for text in texts),
        bytes_per_token=sum(len(text.encode()) for text in texts) / tokens,
        unknown_rate=sum(ids.count(unknown) for ids in encoded if unknown is not None) / tokens,
        round_trip_rate=returned / len(texts),
    )


def token_ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text without special tokens."""
    return list(cast(list[int], tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]))


def pieces_shown(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with a bar between tokens; a token that is part of a character shows as a replacement mark."""
    return "|".join(decode([token], tokenizer) for token in token_ids(text, tokenizer))
