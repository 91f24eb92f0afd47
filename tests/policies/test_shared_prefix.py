"""The layout of a packed row, against an example worked by hand, and the way to blocks and back."""

import numpy as np
import pytest
import torch

from policies.shared_prefix import pack_groups, shared_prefix_length


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


GROUPS = ((ids(5, 6, 7), ids(5, 6, 8, 9)), (ids(3, 4), ids(3, 2)))


def test_a_row_holds_each_groups_prefix_once_and_then_every_rest():
    batch = pack_groups(GROUPS)

    assert batch.input_ids.tolist() == [[5, 6, 3, 7, 8, 9, 4, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 2, 2, 3, 1, 1]]
    assert batch.last_index.tolist() == [3, 5, 6, 7]
    assert batch.group_of_sequence.tolist() == [0, 0, 1, 1]
    assert batch.prefix_lengths.tolist() == [2, 1]
    assert batch.parts == (3, 5)
    assert batch.rests.unpack(batch.input_ids[:, 3:]).tolist() == [[7, 0], [8, 9], [4, 0], [2, 0]]


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
    parts = batch.input_ids.split(batch.parts, dim=1)
    prefixes, rests = (rows.unpack(part) for rows, part in zip((batch.prefixes, batch.rests), parts, strict=True))

    rows = torch.cat([prefixes[batch.group_of_sequence], rests], dim=1)
    read = [row[row > 0].tolist() for row in rows]

    assert read == [[5, 6, 7], [5, 6, 8, 9], [3, 4], [3, 2], [7, 8, 9]]


@pytest.mark.parametrize("groups", [(), ((),), ((ids(1, 2), ids()),)])
def test_nothing_to_pack_is_refused(groups):
    with pytest.raises(ValueError, match=r"empty|without a token"):
        pack_groups(groups)
