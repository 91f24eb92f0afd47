from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from rollout.decode_attention import decode_attention, single_query_attention


def states(heads: int, tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(3, heads, tokens, 8, generator=torch.Generator().manual_seed(seed))


def test_the_softmax_of_the_scores_mixes_the_values() -> None:
    # Scores 2 and 0 at scaling 2: weights e^2 / (e^2 + 1) and the rest.
    query, key = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 5.0], [0.0, 7.0]]]])
    value = torch.tensor([[[[1.0], [0.0]]]])
    mixed, _ = single_query_attention(nn.Module(), query, key, value, None, scaling=2.0)
    assert mixed.shape == (1, 1, 1, 1)
    assert mixed.item() == pytest.approx(0.880797, abs=1e-6)


@pytest.mark.parametrize("query_heads", [4, 2, 8])
@pytest.mark.parametrize("masked", [True, False])
def test_it_agrees_with_the_fused_attention_also_where_query_heads_share_keys(
    query_heads: int, *, masked: bool
) -> None:
    query, key, value = states(query_heads, 1, 0), states(2, 7, 1), states(2, 7, 2)
    mask = torch.zeros(3, 1, 1, 7).masked_fill_(torch.arange(7) < torch.tensor([0, 3, 6])[:, None, None, None], -1e30)
    mask = mask if masked else None
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    received, _ = single_query_attention(nn.Module(), query, key, value, mask)
    torch.testing.assert_close(received, expected.transpose(1, 2))


def test_what_is_masked_has_no_influence() -> None:
    query, key, value = states(2, 1, 0), states(2, 7, 1), states(2, 7, 2)
    mask = torch.zeros(3, 1, 1, 7).masked_fill_(torch.arange(7) >= 5, torch.finfo(torch.float32).min)
    expected, _ = single_query_attention(nn.Module(), query, key[:, :, :5], value[:, :, :5], None)
    received, _ = single_query_attention(nn.Module(), query, key, value, mask)
    torch.testing.assert_close(received, expected)


def test_several_queries_a_row_go_to_the_fused_attention() -> None:
    query, key, value = states(2, 5, 0), states(2, 5, 1), states(2, 5, 2)
    received, _ = single_query_attention(nn.Module(), query, key, value, None, scaling=0.3, is_causal=True)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)
    torch.testing.assert_close(received, expected.transpose(1, 2))


@pytest.mark.parametrize(("before", "inside"), [("sdpa", "rollout_decode"), ("eager", "eager")])
def test_only_models_with_fused_attention_take_it_and_only_inside(
    tiny_model: Callable[[str], PreTrainedModel], before: str, inside: str
) -> None:
    model = tiny_model("llama")
    model.set_attn_implementation(before)
    with decode_attention(model):
        assert model.config._attn_implementation == inside
    assert model.config._attn_implementation == before
