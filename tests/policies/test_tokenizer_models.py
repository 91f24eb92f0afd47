"""Byte-level BPE, WordPiece and Unigram: every text comes back exactly, also from a saved folder."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from policies.config import TokenizerKind
from policies.tokenization import decode, encode_completion, encode_prompt, train_tokenizer
from policies.tokenizer_models import CONTINUATION

STEMS = ("walk", "talk", "look", "jump", "paint", "light", "train", "play")
TEXTS = [f"the {stem}er {stem}ed and is {stem}ing to the {other}er, who {other}s." for stem in STEMS for other in STEMS]
KINDS: tuple[TokenizerKind, ...] = ("bpe", "wordpiece", "unigram")
AWKWARD = f"Größe 猫🐈\n\n  \ttab  ## {CONTINUATION} don't 12345 \x00 \N{NO-BREAK SPACE}" + "x" * 300 + " end "
_TRAINED: dict[TokenizerKind, PreTrainedTokenizerBase] = {}


def trained(kind: TokenizerKind) -> PreTrainedTokenizerBase:
    if kind not in _TRAINED:
        _TRAINED[kind] = train_tokenizer(TEXTS, vocabulary_size=560, kind=kind)
    return _TRAINED[kind]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back_exactly(kind: TokenizerKind, text: str) -> None:
    tokenizer = trained(kind)
    if any(token in text for token in tokenizer.all_special_tokens):
        return
    assert decode(encode_completion(text, tokenizer), tokenizer) == text


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_gives_the_same_ids_and_awkward_text_comes_back(kind: TokenizerKind, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = encode_prompt(AWKWARD, tokenizer)
    assert ids.tolist() == encode_prompt(AWKWARD, loaded).tolist()
    assert decode(ids, loaded) == AWKWARD
    assert ids[0] == tokenizer.bos_token_id == 1


@pytest.mark.parametrize("kind", KINDS)
def test_known_words_take_fewer_tokens_than_bytes_and_the_bound_of_the_vocabulary_holds(kind: TokenizerKind) -> None:
    tokenizer = trained(kind)
    assert len(tokenizer) <= 560
    text = TEXTS[0]
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) < 0.6 * len(text)


def test_wordpiece_takes_the_longest_token_that_matches() -> None:
    tokenizer = train_tokenizer(["ab " * 9 + "abc " * 9 + " abc" * 99], vocabulary_size=530, kind="wordpiece")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(" abcd", add_special_tokens=False)["input_ids"])
    assert tokens == ["Ġabc", f"{CONTINUATION}d"]


@pytest.mark.parametrize(("kind", "fewest"), [("bpe", 260), ("wordpiece", 520), ("unigram", 260)])
def test_a_vocabulary_too_small_for_every_byte_is_refused(kind: TokenizerKind, fewest: int) -> None:
    with pytest.raises(ValueError, match=rf"vocabulary_size={fewest - 1} is too small for a {kind} .*{fewest} or more"):
        train_tokenizer(TEXTS, vocabulary_size=fewest - 1, kind=kind)


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_training_again_gives_the_same_tokens(kind: TokenizerKind) -> None:
    first, second = (train_tokenizer(TEXTS, vocabulary_size=560, kind=kind) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
