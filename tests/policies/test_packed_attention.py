# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportOptionalOperand=false
# pyright: reportCallIssue=false, reportReturnType=false
"""Rows packed into one: the same states and gradients as padded rows, for every architecture that can."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from policies.attention import UnsupportedAttentionError
from policies.backbone import Backbone
from policies.config import LoraTuning
from policies.packed_attention import attend
from policies.packed_rows import PackedRows
from policies.sequences import SequenceBatch
from tests.fixtures_models import ARCHITECTURES
from tests.tiny_models import randomize

MASK = torch.tensor([[True, True, False], [True, True, True]])
PACKABLE = tuple(name for name in ARCHITECTURES if name != "gemma2")


@pytest.mark.parametrize("architecture", PACKABLE)
def test_packed_rows_have_the_states_and_gradients_of_padded_ones(
    architecture: str, backbone_of: Callable[[str], Backbone], batch: SequenceBatch
):
    backbone = backbone_of(architecture)
    assert backbone.packs_rows
    backbone.adapters.add("policy", LoraTuning(rank=2), seed=0)
    randomize(backbone.adapters, "policy", seed=0)
    _, parameters = zip(*backbone.adapters.trainable("policy"), strict=True)

    with backbone.adapters.use("policy"):
        packed = backbone.row_states(batch.input_ids, batch.attention_mask)[batch.attention_mask]
        padded = backbone.hidden_states(batch.input_ids, None, batch.position_ids)[batch.attention_mask]

    assert torch.allclose(packed, padded, atol=1e-4)
    weights = torch.linspace(-1, 1, packed.numel()).view_as(packed)
    gradients = [torch.autograd.grad((states * weights).sum(), parameters) for states in (packed, padded)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_row_never_sees_the_row_before_it(architecture: str, backbone_of: Callable[[str], Backbone]):
    backbone = backbone_of(architecture)
    ids = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    first = backbone.row_states(ids, mask)
    ids[0] = torch.tensor([20, 21, 22, 0])
    second = backbone.row_states(ids, mask)
    assert not torch.allclose(first[0, :3], second[0, :3], atol=1e-2)
    assert torch.allclose(first[1], second[1], atol=1e-6)


def test_an_architecture_with_a_soft_cap_computes_padding_instead(backbone_of: Callable[[str], Backbone]):
    assert not backbone_of("gemma2").packs_rows


def test_another_attention_than_sdpa_is_left_alone(backbone: Backbone):
    assert backbone.packs_rows
    backbone.model.set_attn_implementation("eager")
    assert not backbone.packs_rows


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
def test_autocast_gives_packed_rows_the_states_of_padded_ones(
    architecture: str, backbone_of: Callable[[str], Backbone], batch: SequenceBatch
):
    # Some layers leave queries in float32 and values in bfloat16.
    backbone = backbone_of(architecture)
    exact = backbone.row_states(batch.input_ids, batch.attention_mask)[batch.attention_mask]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert backbone.packs_rows
        received = backbone.row_states(batch.input_ids, batch.attention_mask)[batch.attention_mask]
        padded = backbone.hidden_states(batch.input_ids, None)[batch.attention_mask]
    assert received.dtype == padded.dtype
    assert not torch.equal(received, exact)
    assert (received - exact).norm() < 1.5 * (padded - exact).norm()


def test_the_attention_of_the_model_is_what_it_was_afterwards(backbone: Backbone, batch: SequenceBatch):
    before = backbone.model.config._attn_implementation
    backbone.row_states(batch.input_ids, batch.attention_mask)
    assert backbone.model.config._attn_implementation == before == "sdpa"


@pytest.mark.parametrize("settings", [{"sliding_window": 4}, {"softcap": 30.0}], ids=["window", "soft cap"])
def test_more_than_causal_attention_is_refused(settings: dict[str, float]):
    states = torch.zeros(1, 2, 5, 4)
    with pytest.raises(UnsupportedAttentionError, match=next(iter(settings))):
        attend(torch.nn.Identity(), states, states, states, None, packing=PackedRows.of(MASK), **settings)


def test_a_layer_that_loses_the_layout_is_refused():
    states = torch.zeros(1, 2, 5, 4)
    with pytest.raises(UnsupportedAttentionError, match="does not hand on"):
        attend(torch.nn.Identity(), states, states, states, None)


@pytest.mark.parametrize("groups", [1, 3])
def test_short_bfloat16_rows_on_a_cpu_attend_as_torch_does(groups: int):
    # 2 rows of 4 slots, the first with 3 tokens; 2 key-value heads of size 8.
    mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    generator = torch.Generator().manual_seed(0)
    sources = [torch.randn(1, heads, 7, 8, generator=generator) for heads in (2 * groups, 2, 2)]
    ours = [source.bfloat16().requires_grad_() for source in sources]
    theirs = [source.bfloat16().float().requires_grad_() for source in sources]

    received, _ = attend(torch.nn.Identity(), *ours, None, scaling=0.5, packing=PackedRows.of(mask))
    parts = [
        scaled_dot_product_attention(*(x[:, :, part] for x in theirs), is_causal=True, scale=0.5, enable_gqa=True)
        for part in (slice(0, 3), slice(3, 7))
    ]
    expected = torch.cat(parts, dim=2).transpose(1, 2)

    assert received.dtype == torch.bfloat16
    assert torch.allclose(received.float(), expected, atol=2e-2)
    weights = torch.linspace(-1, 1, expected.numel()).view_as(expected)
    got = torch.autograd.grad((received.float() * weights).sum(), ours)
    wanted = torch.autograd.grad((expected * weights).sum(), theirs)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a.float(), b, atol=3e-2)
        assert float(b.abs().max()) > 0.2


def test_scores_are_taken_in_float32():
    # Two keys whose scores, 256 and 257, are one number in bfloat16; the second is e times as likely.
    query = torch.tensor([[0.0, 0.0], [16.0, 1.0]]).bfloat16()[None, None]
    key = torch.tensor([[16.0, 0.0], [16.0, 1.0]]).bfloat16()[None, None]
    value = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).bfloat16()[None, None]
    rows = PackedRows.of(torch.ones(1, 2, dtype=torch.bool))
    output, _ = attend(torch.nn.Identity(), query, key, value, None, scaling=1.0, packing=rows)
    assert output[0, 1, 0, 0].item() == pytest.approx(math.e / (1 + math.e), abs=4e-3)
