import numpy as np
import pytest
import torch

from policies.sequences import evaluate_in_micro_batches, micro_batches, pad_sequences, pad_texts


def ids(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_sequences_are_joined_and_padded_on_the_right():
    batch = pad_sequences(ids([5, 6], [7]), ids([8], [9, 1]), pad_id=0)

    assert batch.input_ids.tolist() == [[5, 6, 8], [7, 9, 1]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, True, True]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.response_lengths.tolist() == [1, 2]
    assert batch.response_mask.tolist() == [[True, False], [True, True]]


def test_padding_carries_the_pad_id_and_is_masked():
    batch = pad_sequences(ids([5, 6, 7], [8]), ids([9, 10], [11]), pad_id=99)

    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 10], [8, 11, 99, 99, 99]]
    assert batch.attention_mask.tolist() == [[True] * 5, [True, True, False, False, False]]
    assert batch.input_ids.dtype == torch.long


def test_the_first_token_of_a_text_is_its_prompt():
    batch = pad_texts(ids([5, 6, 7], [8, 9]), pad_id=0)

    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.response_mask.tolist() == [[True, True], [True, False]]


def test_moving_a_batch_moves_every_tensor():
    batch = pad_sequences(ids([5]), ids([6]), pad_id=0).to("meta")

    assert {tensor.device.type for tensor in (batch.input_ids, batch.response_mask, batch.prompt_lengths)} == {"meta"}


@pytest.mark.parametrize(
    ("prompts", "responses", "message"),
    [
        ([], [], "prompts is empty"),
        ([[1], []], [[2], [3]], r"prompts\[1\] has no token"),
        ([[1]], [[]], r"responses\[0\] has no token"),
        ([[1], [2]], [[3]], "2 prompts for 1 responses"),
    ],
)
def test_sequences_that_predict_nothing_are_refused(prompts: list, responses: list, message: str):
    with pytest.raises(ValueError, match=message):
        pad_sequences(ids(*prompts), ids(*responses), pad_id=0)


def test_a_text_of_one_token_is_refused():
    with pytest.raises(ValueError, match=r"texts\[1\] has 1 tokens"):
        pad_texts(ids([1, 2], [3]), pad_id=0)


def test_micro_batches_are_filled_longest_first():
    # 9 alone (2 * 9 > 12); 4 + 4 + 3 fit (3 * 4 = 12); 1 and 1 follow. Equal lengths keep their order.
    assert micro_batches([4, 1, 9, 3, 4, 1], token_budget=12) == [[2], [0, 4, 3], [1, 5]]


def test_a_sequence_beyond_the_budget_is_a_group_of_its_own():
    assert micro_batches([7, 50, 2], token_budget=10) == [[1], [0], [2]]


def test_micro_batches_hold_each_index_once_and_stay_within_the_budget():
    lengths = np.random.default_rng(0).integers(1, 40, size=200).tolist()

    groups = micro_batches(lengths, token_budget=100)

    assert sorted(index for group in groups for index in group) == list(range(200))
    assert all(len(group) * max(lengths[i] for i in group) <= 100 for group in groups)


def test_micro_batches_of_nothing_are_nothing():
    assert micro_batches([], token_budget=10) == []


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="token_budget=0"):
        micro_batches([1], token_budget=0)


def test_results_of_micro_batches_come_back_in_the_order_of_the_input_without_padding():
    prompts, responses = ids([1], [1, 1, 1], [1]), ids([20, 21], [30], [40, 41, 42])
    sizes = []

    def response_ids(batch):
        sizes.append(len(batch))
        return torch.stack(
            [
                torch.nn.functional.pad(row[p : p + r], (0, batch.response_mask.shape[1] - int(r)), value=-1)
                for row, p, r in zip(batch.input_ids, batch.prompt_lengths, batch.response_lengths, strict=True)
            ]
        )

    results = evaluate_in_micro_batches(
        response_ids, prompts, responses, token_budget=8, pad_id=0, device=torch.device("cpu")
    )

    assert [result.tolist() for result in results] == [[20, 21], [30], [40, 41, 42]]
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    assert sizes == [2, 1]


def test_results_of_micro_batches_have_no_gradient():
    weight = torch.ones(1, requires_grad=True)
    seen = []

    def function(batch):
        values = weight * batch.response_mask
        seen.append(values.requires_grad)
        return values

    evaluate_in_micro_batches(function, ids([1]), ids([2]), token_budget=8, pad_id=0, device="cpu")

    assert seen == [False]
