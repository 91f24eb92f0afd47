"""The layout of a packed row, against an example worked by hand, and the way to blocks and back."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from policies.shared_prefix import RaggedRows, pack_groups, shared_prefix_length


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


GROUPS = ((ids(5, 6, 7), ids(5, 6, 8, 9)), (ids(3, 4), ids(3, 2)))


def test_a_row_holds_each_groups_prefix_once_and_then_every_rest():
    batch = pack_groups(GROUPS)

    assert batch.input_ids.tolist() == [[5, 6, 3, 7, 8, 9, 4, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 2, 2, 3, 1, 1]]
    assert batch.last_index.tolist() == [3, 5, 6, 7]
    assert batch.group_of_sequence.tolist() == [0, 0, 1, 1]
    assert (batch.prefixes.lengths.tolist(), batch.rests.lengths.tolist()) == ([2, 1], [1, 2, 1, 1])
    assert batch.prefix_tokens == 3


@pytest.mark.parametrize(
    ("sequences", "length"),
    [
        ((ids(1, 2, 3), ids(1, 2, 4)), 2),
        ((ids(1, 2, 3), ids(1, 2, 3, 4)), 2),  # The shorter keeps its last token.
        ((ids(1, 2, 3), ids(1, 2, 3)), 2),
        ((ids(1, 2, 3), ids(4, 2, 3)), 0),
        ((ids(1, 9, 3), ids(1, 2, 3), ids(1, 9, 3)), 1),
        ((ids(1, 2, 3, 4),), 3),
        ((ids(1), ids(1, 2)), 0),
    ],
)
def test_the_prefix_is_what_all_share_and_leaves_each_a_token(sequences, length):
    assert shared_prefix_length(sequences) == length


def test_every_sequence_can_be_read_back_from_the_row():
    batch = pack_groups([*GROUPS, (ids(7, 8, 9),)])
    prefixes = np.split(batch.input_ids[0, : batch.prefix_tokens].numpy(), batch.prefixes.lengths.numpy().cumsum())[:-1]
    rests = np.split(batch.input_ids[0, batch.prefix_tokens :].numpy(), batch.rests.lengths.numpy().cumsum())[:-1]

    read = [[*prefixes[group], *rest] for group, rest in zip(batch.group_of_sequence, rests, strict=True)]

    assert read == [[5, 6, 7], [5, 6, 8, 9], [3, 4], [3, 2], [7, 8, 9]]


def test_blocks_pad_each_row_to_the_longest():
    rows = RaggedRows.of(np.array([1, 0, 3]), "cpu")

    block = rows.to_block(torch.tensor([[10.0], [20.0], [21.0], [22.0]]))

    assert block.shape == (3, 3, 1)
    assert block[0, 0].item() == 10
    assert block[2, :, 0].tolist() == [20, 21, 22]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), st.integers(0, 2**16))
def test_a_block_and_back_is_the_identity_with_the_gradient_of_the_identity(lengths, seed):
    rows = RaggedRows.of(np.array(lengths), "cpu")
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(sum(lengths), 2, generator=generator, requires_grad=True)
    upstream = torch.randn(tokens.shape, generator=generator)

    # Squared at padding too, where nothing may come of it.
    back = rows.from_block(rows.to_block(tokens) ** 2)
    (gradient,) = torch.autograd.grad((back * upstream).sum(), tokens)

    torch.testing.assert_close(back, tokens**2)
    torch.testing.assert_close(gradient, 2 * tokens.detach() * upstream)


@pytest.mark.parametrize("groups", [(), ((),), ((ids(1, 2), ids()),)])
def test_nothing_to_pack_is_refused(groups):
    with pytest.raises(ValueError, match=r"empty|without a token"):
        pack_groups(groups)
