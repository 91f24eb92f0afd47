"""Packed text: what a sequence holds, that the stream resumes exactly, and perplexity against a direct computation."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from policies.causal import CausalPolicy
from policies.config import ModelConfig
from policies.loading import load_backbone
from rlhf.text_stream import TextStream, encode_documents, perplexity, require_texts

TEXTS = ["the cat sat", "a dog ran over the hill", "rain", "the girl sang all day", "mat"]


def stream(tokenizer: PreTrainedTokenizerBase, *, sequence_tokens: int = 16, seed: int = 3) -> TextStream:
    return TextStream(TEXTS, tokenizer, sequence_tokens=sequence_tokens, seed=seed)


def test_a_document_is_bos_text_eos(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (document,) = encode_documents(["the cat"], tiny_tokenizer)
    body = tiny_tokenizer("the cat", add_special_tokens=False)["input_ids"]
    assert document.tolist() == [tiny_tokenizer.bos_token_id, *body, tiny_tokenizer.eos_token_id]


def test_an_epoch_is_the_documents_end_to_end_without_a_rest(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    documents = [document.tolist() for document in encode_documents(TEXTS, tiny_tokenizer)]
    epoch = []
    text = stream(tiny_tokenizer, sequence_tokens=8)
    while text.epoch_progress < 1:
        epoch += text.next(1)[0].tolist()
    possible = (list(itertools.chain(*order)) for order in itertools.permutations(documents))
    assert epoch in [tokens[: len(tokens) // 8 * 8] for tokens in possible]
    assert len(epoch) % 8 == 0


def test_sequences_have_exactly_the_asked_length_and_cannot_be_written(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    for sequence_tokens in (4, 16, 500):
        for sequence in stream(tiny_tokenizer, sequence_tokens=sequence_tokens).next(7):
            assert sequence.shape == (sequence_tokens,)
            assert not sequence.flags.writeable


def test_epochs_differ_in_order_and_the_seed_decides_it(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    first, again, other = (np.stack(stream(tiny_tokenizer, seed=seed).next(12)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_resumed_stream_goes_on_exactly_over_the_end_of_an_epoch(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    straight, before, after = stream(tiny_tokenizer), stream(tiny_tokenizer), stream(tiny_tokenizer)
    expected = straight.next(40)
    start = before.next(17)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    resumed = after.next(23)
    assert all(np.array_equal(a, b) for a, b in zip(expected, start + resumed, strict=True))
    assert after.epoch_progress == straight.epoch_progress > 2


def test_other_documents_than_those_of_the_checkpoint_are_refused(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    state = stream(tiny_tokenizer).state_dict()
    with pytest.raises(ValueError, match="the checkpoint was made with"):
        TextStream(TEXTS[1:], tiny_tokenizer, sequence_tokens=16, seed=3).load_state_dict(state)


def test_one_token_parts_documents_where_bos_is_eos(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    # The fast tokenizer's state is shared by reference, so the change is made on a reloaded copy.
    tokenizer = type(tiny_tokenizer)(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<bos>", eos_token="<bos>", pad_token="<pad>"
    )
    joined = np.concatenate(TextStream(TEXTS, tokenizer, sequence_tokens=400, seed=0).next(1))
    separators = joined == tokenizer.bos_token_id
    assert separators[0]
    assert not (separators[1:] & separators[:-1]).any()


@pytest.mark.parametrize("row", [{}, {"text": None}, {"text": ""}, {"text": 7}])
def test_a_row_without_text_is_named(row: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"data.train, row 1: text is .* data.on_bad_row=skip"):
        require_texts([{"text": "a"}, row], source="data.train")


def test_skipped_rows_are_counted_and_reported() -> None:
    texts, skipped = require_texts([{"text": "a"}, {}, {"text": "b"}], source="data.train", on_bad_row="skip")
    assert texts == ["a", "b"]
    assert [line.split(": text is")[0] for line in skipped] == ["data.train, row 1"]


def test_nothing_but_bad_rows_is_refused_even_when_skipping() -> None:
    with pytest.raises(ValueError, match="no row has a text"):
        require_texts([{}], source="data.train", on_bad_row="skip")


def test_perplexity_equals_the_models_own_loss_over_all_documents(tiny_llama_folder: Path) -> None:
    policy = CausalPolicy(load_backbone(ModelConfig(path=str(tiny_llama_folder))), adapter=None, temperature=0.7)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    total, count = 0.0, 0
    for document in encode_documents(TEXTS, policy.backbone.tokenizer):
        ids = torch.from_numpy(document).long()[None]
        with torch.no_grad():
            total += model(ids, labels=ids).loss.item() * (len(document) - 1)
        count += len(document) - 1
    assert perplexity(policy, TEXTS) == pytest.approx(math.exp(total / count), rel=1e-5)
    assert perplexity(policy, TEXTS, micro_batch_tokens=20) == pytest.approx(math.exp(total / count), rel=1e-5)


def test_a_long_document_is_read_in_pieces_that_predict_every_token_once(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    (document,) = encode_documents(["the girl sang all day " * 5], tiny_tokenizer)
    for max_tokens in (2, 7, len(document) - 1, len(document)):
        pieces = encode_documents(["the girl sang all day " * 5], tiny_tokenizer, max_tokens=max_tokens)
        predicted = np.concatenate([piece[1:] for piece in pieces])
        assert np.array_equal(predicted, document[1:])
        assert max(len(piece) for piece in pieces) <= max_tokens
        assert min(len(piece) for piece in pieces) >= 2


def test_a_document_longer_than_the_context_has_a_perplexity(tiny_llama_folder: Path) -> None:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder)))
    policy = CausalPolicy(backbone, adapter=None, temperature=1.0)
    assert 1 < perplexity(policy, ["the girl sang all day " * 40]) < 1e4


def test_packed_sequences_hold_every_document_whole_once_an_epoch_and_are_filled(
    tiny_tokenizer: PreTrainedTokenizerBase,
) -> None:
    texts = [f"{text} {number}" for text in TEXTS for number in range(8)]
    text = TextStream(texts, tiny_tokenizer, sequence_tokens=48, seed=3, packing="packed")
    documents = sorted(tuple(document.tolist()) for document in encode_documents(texts, tiny_tokenizer))
    rows: list[tuple[int, ...]] = []
    sequences = 0
    while text.epoch_progress < 1:
        sequence = [tuple(row.tolist()) for row in text.next(1)]
        assert sum(map(len, sequence)) <= 48
        rows += sequence
        sequences += 1
    assert sorted(rows) == documents
    assert sum(map(len, rows)) > 0.9 * 48 * (sequences - 1)


def test_a_document_longer_than_a_packed_sequence_comes_in_pieces(tiny_tokenizer: PreTrainedTokenizerBase) -> None:
    (document,) = encode_documents(["the cat sat on the mat " * 3], tiny_tokenizer)
    text = TextStream(["the cat sat on the mat " * 3], tiny_tokenizer, sequence_tokens=10, seed=0, packing="packed")
    rows = []
    while text.epoch_progress < 1:
        rows += [row.tolist() for row in text.next(1)]
    assert max(map(len, rows)) <= 10
    assert sum(len(row) - 1 for row in rows) == len(document) - 1, "every token but the first is predicted once"
