"""Unlike batches are computed in few different sizes, and the numbers of their tokens do not show it."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import LoraTuning
from policies.packed_attention import PackedRows
from policies.round_sizes import round_places, round_size
from policies.sequences import SequenceBatch, pad_sequences
from tests.tiny_models import randomize

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    # A 16th of 31 is below 2; that of 97 is 6.1, so 4; that of 513 is 32.1, so 32; that of 1000 is 62.5, so 32.
    ("size", "rounded"),
    [(0, 0), (1, 1), (31, 31), (33, 34), (97, 100), (100, 100), (513, 544), (1000, 1024)],
)
def test_sizes_worked_by_hand(size: int, rounded: int):
    assert round_size(size, CPU) == rounded


def test_there_are_few_round_sizes_and_none_is_far():
    sizes = range(1, 5000)
    rounded = [round_size(size, CPU) for size in sizes]
    assert all(size <= round_ <= size * 17 / 16 for size, round_ in zip(sizes, rounded, strict=True))
    assert len({size for size in rounded if 512 < size <= 1024}) == 16


def test_a_gpu_has_kernels_for_every_size():
    assert round_size(513, torch.device("cuda")) == 513


def test_the_first_free_places_make_the_number_round():
    mask = torch.ones(36, dtype=torch.bool)
    mask[[2, 5, 35]] = False
    # 33 places become 34.
    assert round_places(mask).tolist() == [place for place in range(36) if place not in (5, 35)]
    assert round_places(torch.tensor([True, False, True])).tolist() == [0, 2]


def test_a_full_batch_gets_no_more_places_than_it_has():
    mask = torch.ones(514, dtype=torch.bool)
    mask[3] = False
    assert round_places(mask).tolist() == list(range(514))


def ragged(rows: int, longest: int) -> SequenceBatch:
    generator = np.random.default_rng(longest)
    prompts = [generator.integers(1, 30, length) for length in generator.integers(3, 12, rows)]
    responses = [generator.integers(1, 30, length) for length in generator.integers(1, longest, rows)]
    return pad_sequences(prompts, responses, pad_id=0)


def test_attention_and_layers_see_round_sizes():
    batch = ragged(9, 34)
    rows = PackedRows.of(batch.attention_mask)
    packed = rows.pack(batch.input_ids)
    tokens, width = int(batch.attention_mask.sum()), batch.input_ids.shape[1]
    assert packed.shape[1] == round_size(tokens, CPU) > tokens
    assert rows.width == round_size(width, CPU) > width
    assert torch.equal(rows.unpack(packed)[batch.attention_mask], batch.input_ids[batch.attention_mask])
    slots = rows.spread(packed[0]).view(len(batch), rows.width)
    assert torch.equal(slots[:, :width][batch.attention_mask], batch.input_ids[batch.attention_mask])
    assert torch.equal(rows.gather(slots.flatten()), packed[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_and_gradients_are_those_of_each_row_alone(dtype: torch.dtype, backbone_of: Callable[[str], Backbone]):
    backbone = backbone_of("llama")
    backbone.adapters.add("policy", LoraTuning(rank=2), seed=0)
    randomize(backbone.adapters, "policy", seed=0)
    cast(Any, backbone.model).to(dtype)
    policy = CausalPolicy(backbone, adapter="policy", temperature=0.7)
    _, parameters = zip(*policy.trainable(), strict=True)
    batch = ragged(9, 34)
    together = policy.logprobs(batch, with_entropy=True)
    assert together.entropy is not None
    assert not together.logprobs[~batch.response_mask].any()
    assert not together.entropy[~batch.response_mask].any()

    alone = torch.zeros_like(together.logprobs)
    for row, (p, r) in enumerate(zip(batch.prompt_lengths.tolist(), batch.response_lengths.tolist(), strict=True)):
        ids = batch.input_ids[row].numpy()
        alone[row, :r] = policy.logprobs(pad_sequences([ids[:p]], [ids[p : p + r]], pad_id=0)).logprobs[0]
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(together.logprobs, alone, rtol=tolerance, atol=tolerance)
    weights = torch.linspace(-1, 1, alone.numel()).view_as(alone)
    for ours, theirs in zip(
        *(torch.autograd.grad((each * weights).sum(), parameters) for each in (together.logprobs, alone)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))
