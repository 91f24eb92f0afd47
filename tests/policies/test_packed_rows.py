"""Rows of unlike length laid out as one, against examples worked by hand, and the way back."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.packed_rows import PackedRows

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_packing_lays_the_tokens_of_one_row_behind_those_of_the_row_before():
    rows = PackedRows.of(MASK)
    packed = rows.pack(torch.tensor([[5, 6, 0], [7, 8, 9]]))
    assert packed.tolist() == [[5, 6, 7, 8, 9]]
    assert rows.unpack(packed).tolist() == [[5, 6, 0], [7, 8, 9]]
    assert (rows.slot_count, rows.token_count) == (6, 5)


def test_rows_of_one_length_are_packed_without_a_copy():
    padded = torch.arange(6.0).view(2, 3)
    packed = PackedRows.of(torch.ones(2, 3, dtype=torch.bool)).pack(padded)
    assert packed.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert packed.data_ptr() == padded.data_ptr()


def test_a_token_is_found_again_in_the_packed_row():
    # The last tokens of both rows.
    assert PackedRows.of(MASK).packed_index(torch.tensor([1, 5])).tolist() == [1, 4]
    assert PackedRows.of(torch.ones(2, 3, dtype=torch.bool)).packed_index(torch.tensor([2])).tolist() == [2]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), st.integers(0, 2**16))
def test_padding_and_back_is_the_identity_with_the_gradient_of_the_identity(lengths: list[int], seed: int):
    rows = PackedRows.of(torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, sum(lengths), 2, generator=generator, requires_grad=True)
    upstream = torch.randn(tokens.shape, generator=generator)

    # Not 0 at padding on the way, and nothing may come of it.
    back = rows.pack((rows.unpack(tokens) + 3) ** 2)
    (gradient,) = torch.autograd.grad((back * upstream).sum(), tokens)

    torch.testing.assert_close(back, (tokens + 3) ** 2)
    torch.testing.assert_close(gradient, 2 * (tokens.detach() + 3) * upstream)
