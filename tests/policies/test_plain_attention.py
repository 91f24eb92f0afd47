"""Attention by plain products, against torch's own and against finite differences."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from policies.plain_attention import plain_attention

SCALE = 0.3


def random_states(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0] + 10 * shape[1])
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def hidden(*places: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    mask = torch.zeros(shape, dtype=torch.float64)
    for place in places:
        mask[place] = -torch.inf
    return mask


def test_blocks_with_keys_of_their_own_attend_as_torch_does():
    query, key, value = random_states(4, 3, 5), random_states(4, 6, 5), random_states(4, 6, 5)
    mask = hidden((0, 1, 2), (1, 2, 0), shape=(2, 3, 6))

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return plain_attention(query, key, value, mask, scale=SCALE)

    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask.repeat(2, 1, 1), scale=SCALE)
    torch.testing.assert_close(attend(query, key, value), expected)
    assert torch.autograd.gradcheck(attend, (query, key, value))


def test_blocks_in_a_row_share_the_keys_before_them():
    query, key, value = random_states(4, 3, 5), random_states(4, 3, 5), random_states(4, 3, 5)
    earlier = random_states(2, 4, 5), random_states(2, 4, 5)
    mask = hidden((0, 0, 1), (0, 2, 6), shape=(1, 3, 7))

    def attend(query: Tensor, key: Tensor, value: Tensor, *earlier: Tensor) -> Tensor:
        return plain_attention(query, key, value, mask, scale=SCALE, earlier=(earlier[0], earlier[1]))

    # Blocks 0 and 1 meet the first of the earlier ones, 2 and 3 the second.
    keys, values = (
        torch.cat([before.repeat_interleave(2, dim=0), own], dim=1)
        for before, own in zip(earlier, (key, value), strict=True)
    )
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=SCALE)
    torch.testing.assert_close(attend(query, key, value, *earlier), expected)
    assert torch.autograd.gradcheck(attend, (query, key, value, *earlier))


@pytest.mark.parametrize("blocks_at_a_time", [1, 3, 100])
def test_float32_scores_round_the_probabilities_alone(blocks_at_a_time: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("policies.plain_attention._SCORES_AT_A_TIME", blocks_at_a_time * 3 * 6)
    query, key, value = (random_states(4, count, 5).detach().bfloat16() for count in (3, 6, 6))
    mask = torch.zeros(1, 3, 6)
    mask[0, 1, 4:] = -torch.inf

    received = plain_attention(query, key, value, mask, scale=SCALE, float32_scores=True)

    scores = query.float() @ key.float().transpose(1, 2) * SCALE + mask
    expected = scores.softmax(dim=-1).bfloat16().float() @ value.float()
    assert received.dtype == torch.bfloat16
    torch.testing.assert_close(received.float(), expected, rtol=2**-8, atol=2**-8)
    rounded = plain_attention(query, key, value, mask.bfloat16(), scale=SCALE)
    assert not torch.equal(received, rounded)
    torch.testing.assert_close(rounded.float(), expected, rtol=0.05, atol=0.05)
