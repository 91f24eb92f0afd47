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


def test_ties_are_added_where_they_are_asked_for_with_even_odds(tiny_tokenizer):
    sure = Comparison("p", ("a", "b"), ((0,), (1,)), "", weight=2.5, win_probability=0.75, strengths=(1.0, 0.25))

    batch = collate(encode([sure, RANKED], tiny_tokenizer).comparisons, with_ties=True)

    assert batch.winner_index.tolist() == [0, 4, 4, 2]
    assert batch.loser_index.tolist() == [1, 2, 3, 3]
    assert batch.group_of_pair.tolist() == [0, 1, 1, 1]
    assert batch.group_of_sequence.tolist() == [0, 0, 1, 1, 1]
    assert batch.target.tolist() == [0.75, 1.0, 1.0, 0.5]
    assert batch.group_weight.tolist() == [2.5, 1.0]
    assert batch.margin[[0, 3]].tolist() == [0.75, 0.0]
    assert batch.margin[1:3].isnan().all()


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

    assert [len(group) for group in group_comparisons(comparisons, pair + ranked)] == [1, 2]
    assert [len(group) for group in group_comparisons(comparisons, 1)] == [1, 1, 1]
    assert [len(group) for group in group_comparisons(comparisons, 10_000)] == [3]


def test_micro_batches_hold_comparisons_of_similar_length_the_longest_first(tiny_tokenizer):
    comparisons = encode([RANKED, PAIR, RANKED], tiny_tokenizer).comparisons

    groups = group_comparisons(comparisons, 2 * comparisons[0].token_count)

    assert [[encoded.comparison for encoded in group] for group in groups] == [[PAIR], [RANKED, RANKED]]


def test_a_prompt_that_is_read_once_counts_once(tiny_tokenizer):
    (encoded,) = encode([PAIR], tiny_tokenizer).comparisons
    shared = len(tiny_tokenizer("<bos>the cat", add_special_tokens=False)["input_ids"])

    assert encoded.unique_token_count == encoded.token_count - shared
    budget = 2 * encoded.unique_token_count
    assert [len(group) for group in group_comparisons([encoded, encoded], budget, shares_prefixes=True)] == [2]
    assert [len(group) for group in group_comparisons([encoded, encoded], budget)] == [1, 1]


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
