"""Tokens to blocks and back: an example worked by hand, transformers' rotary embedding, and the gradients."""

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from policies.head_blocks import from_blocks, to_blocks
from policies.packed_rows import PackedRows

ROWS = PackedRows.of(torch.tensor([[True, False], [True, True]]))
GENERATOR = torch.Generator().manual_seed(0)


def random_states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64, requires_grad=True)


def test_blocks_put_heads_before_rows_and_the_query_heads_of_a_group_behind_each_other():
    # Three tokens of four query heads of size 1; heads 0 and 1 share a key-value head.
    states = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]).unsqueeze(-1)
    blocks = to_blocks(states, ROWS, groups=2)
    assert blocks.squeeze(-1).tolist() == [[1, 0, 2, 0], [5, 9, 6, 10], [3, 0, 4, 0], [7, 11, 8, 12]]
    assert torch.equal(from_blocks(blocks, ROWS, groups=2), states)


def test_the_rotation_is_that_of_transformers():
    angles = torch.rand(3, 2, generator=GENERATOR, dtype=torch.float64).repeat(1, 2)
    states = random_states(3, 2, 4)
    heads_first, rotation = states.transpose(0, 1)[None], (angles.cos(), angles.sin())
    expected, _ = apply_rotary_pos_emb(heads_first, heads_first, rotation[0][None], rotation[1][None])
    turned = to_blocks(states, ROWS, rotation=rotation)
    torch.testing.assert_close(from_blocks(turned, ROWS), expected[0].transpose(0, 1))


def test_the_gradients_are_those_that_finite_differences_find():
    angles = torch.rand(3, 4, generator=GENERATOR, dtype=torch.float64)
    rotation = (angles.cos(), angles.sin())
    assert torch.autograd.gradcheck(lambda x: to_blocks(x, ROWS, groups=2, rotation=rotation), random_states(3, 4, 4))
    assert torch.autograd.gradcheck(lambda x: from_blocks(x, ROWS, groups=2), random_states(4, 4, 3))
