"""Byte-level tokenizer models: BPE, WordPiece and Unigram, trained on text by `tokenizers`.

All three cut text into the same pieces first (GPT-2's rule: words with the space in front, numbers, marks) and work on
bytes, so any text can be encoded, nothing is unknown, and decoding gives the text back exactly. Owns what differs
between them; special tokens and the transformers wrapper are `tokenization`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from policies.config import TokenizerKind

CONTINUATION = "\N{UNDERTIE}"
"""Begins the WordPiece tokens that go on with a word. Not the usual `##`, which byte-level text can hold itself, so
that a token could be read in two ways."""

FEWEST_TOKENS: dict[TokenizerKind, int] = {"bpe": 260, "wordpiece": 520, "unigram": 260}
"""Smallest vocabularies: every byte, for WordPiece also as a continuation, the special tokens, something to learn."""


def train_model(
    texts: Iterable[str], kind: TokenizerKind, *, vocabulary_size: int, special_tokens: Sequence[str]
) -> Tokenizer:
    """A tokenizer of at most `vocabulary_size` tokens, the special ones first.

    bpe: merges the most frequent pair of neighbours, again and again (Sennrich et al. 2016).
    wordpiece: encodes by the longest token that matches (Wu et al. 2016). Its vocabulary holds what BPE of the same
    size makes of the words, apart for beginnings and continuations, the most frequent first.
    unigram: prunes a large set of pieces to those that keep the likelihood of the text high, and encodes by the most
    probable segmentation (Kudo 2018). A piece must stand in two different words to be considered. The library trains it
    in an order of its own: twice on the same text gives nearly, not exactly, the same pieces.

    Raises:
        ValueError: the vocabulary is too small for the kind.
    """
    fewest = FEWEST_TOKENS[kind]
    if vocabulary_size < fewest:
        raise ValueError(
            f"vocabulary_size={vocabulary_size} is too small for a {kind} tokenizer, which has every byte; give "
            f"{fewest} or more"
        )
    if kind == "wordpiece":
        return _wordpiece(texts, vocabulary_size, list(special_tokens))
    return _trained(texts, kind, vocabulary_size, list(special_tokens))


def _trained(texts: Iterable[str], kind: TokenizerKind, vocabulary_size: int, special_tokens: list[str]) -> Tokenizer:
    backend = _byte_level(models.BPE() if kind == "bpe" else models.Unigram())
    trainer_class = trainers.BpeTrainer if kind == "bpe" else trainers.UnigramTrainer
    trainer = trainer_class(
        vocab_size=vocabulary_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _byte_level(model: models.Model) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _wordpiece(texts: Iterable[str], vocabulary_size: int, special_tokens: list[str]) -> Tokenizer:
    # Not the library's own trainer: it breaks ties in an order that differs from run to run.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    needed = [*special_tokens, *alphabet, *(CONTINUATION + byte for byte in alphabet)]
    tokens = list(dict.fromkeys([*needed, *_word_parts(list(texts), vocabulary_size, special_tokens)]))
    model = models.WordPiece(
        vocab={token: index for index, token in enumerate(tokens[:vocabulary_size])},
        unk_token=special_tokens[0],  # The library wants one; with every byte there it never comes up.
        continuing_subword_prefix=CONTINUATION,
        max_input_chars_per_word=2**31 - 1,  # A longer word would be unknown.
    )
    backend = _byte_level(model)
    backend.decoder = decoders.Sequence([decoders.Replace(CONTINUATION, ""), decoders.ByteLevel()])
    return backend


def _word_parts(texts: Sequence[str], vocabulary_size: int, special_tokens: list[str]) -> list[str]:
    """Beginnings and continuations of words as BPE cuts them, the most frequent first; equal ones by their letters."""
    backend = _trained(texts, "bpe", vocabulary_size, special_tokens)
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    parts: Counter[str] = Counter()
    for word, count in words.items():
        first, *rest = (token.value for token in backend.model.tokenize(word))
        parts[first] += count
        for token in rest:
            parts[CONTINUATION + token] += count
    return sorted(parts, key=lambda part: (-parts[part], part))
