import numpy as np
import pytest

from reward.demonstrations import encode_demonstrations
from reward.preference_batch import collate, encode_comparisons, group_comparisons
from reward.preferences import Comparison, ComparisonSet
from reward.row_fields import OnBadRow

PAIR = Comparison("the cat", (" sat", " ran to the tree"), ((1,), (0,)), "rows, row 0")
RANKED = Comparison("", ("a", "the dog", "the rain"), ((2,), (0, 1)), "rows, row 1")


def encode(comparisons, tokenizer, max_tokens=64, on_bad_row: OnBadRow = "error", skipped=()):
    found = ComparisonSet(list(comparisons), list(skipped))
    return encode_comparisons(found, tokenizer, max_tokens=max_tokens, source="rows", on_bad_row=on_bad_row)


def test_comparisons_side_by_side_hold_each_response_once_with_shifted_indices(tiny_tokenizer):
    batch = collate(encode([PAIR, RANKED], tiny_tokenizer).comparisons)

    assert len(batch.sequences) == 5
    assert batch.winner_index.tolist() == [1, 4, 4]
    assert batch.loser_index.tolist() == [0, 2, 3]
    assert batch.group_of_pair.tolist() == [0, 1, 1]


def test_the_prompt_stands_before_each_of_its_responses(tiny_tokenizer):
    (encoded,) = encode([PAIR], tiny_tokenizer).comparisons

    texts = [tiny_tokenizer.decode(ids) for ids in encoded.sequences]

    assert texts == ["<bos>the cat sat<eos>", "<bos>the cat ran to the tree<eos>"]
    assert encoded.token_count == sum(len(ids) for ids in encoded.sequences)


def test_a_comparison_with_one_response_too_long_is_a_bad_row(tiny_tokenizer):
    longest = max(len(ids) for ids in encode([PAIR], tiny_tokenizer).comparisons[0].sequences)

    with pytest.raises(ValueError, match=rf"rows, row 0: prompt plus response has {longest} tokens.*on_bad_row=skip"):
        encode([PAIR, RANKED], tiny_tokenizer, max_tokens=longest - 1)

    kept = encode([PAIR, RANKED], tiny_tokenizer, max_tokens=longest - 1, on_bad_row="skip", skipped=["earlier"])
    assert [encoded.comparison for encoded in kept.comparisons] == [RANKED]
    assert kept.skipped[0] == "earlier"
    assert "row 0" in kept.skipped[1]


def test_micro_batches_never_split_a_comparison(tiny_tokenizer):
    comparisons = encode([PAIR, RANKED, PAIR], tiny_tokenizer).comparisons
    pair, ranked, _ = (comparison.token_count for comparison in comparisons)

    assert [len(group) for group in group_comparisons(comparisons, pair + ranked)] == [2, 1]
    assert [len(group) for group in group_comparisons(comparisons, 1)] == [1, 1, 1]
    assert [len(group) for group in group_comparisons(comparisons, 10_000)] == [3]


def test_demonstrations_are_read_like_comparisons_and_may_be_empty(tiny_tokenizer):
    chat = [{"role": "user", "content": "who?"}]
    rows = [
        {"prompt": "the cat", "completion": " sat"},
        {"prompt": "the cat", "completion": ""},
        {"prompt": chat, "completion": [{"role": "assistant", "content": "a dog"}]},
        {"prompt": "the cat"},
    ]

    found, skipped = encode_demonstrations(rows, tiny_tokenizer, max_tokens=64, source="rows", on_bad_row="skip")

    texts = [tiny_tokenizer.decode(ids) for ids in found]
    assert texts == ["<bos>the cat sat<eos>", "<bos>the cat<eos>", "<bos>user: who?\nassistant:a dog<eos>"]
    assert skipped == ["rows, row 3: field 'completion' is missing (the row has 'prompt'): add it"]
    assert all(ids.dtype == np.int32 for ids in found)
