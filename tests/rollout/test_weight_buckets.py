"""Weights in buckets: cut by hand, put together again, compared bit by bit."""

import math

import pytest
import torch

from rollout.weight_buckets import Part, cut_into_buckets, largest_mismatch, pack_bucket, place_of
from rollout.weight_sync import unpack


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 2), "b": (3,), "scalar": (), "empty": (0, 4), "wide": (2, 8)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"half": torch.randn(5, 3, generator=generator).to(torch.bfloat16)}


def test_the_cut_is_the_one_worked_by_hand() -> None:
    tensors = {"a": torch.zeros(4, 2), "b": torch.zeros(3), "c": torch.zeros(())}
    # Rows of 8, 4 and 4 bytes into buckets of 16.
    assert cut_into_buckets(tensors, 16) == [
        [Part("a", 0, 2, is_whole=False)],
        [Part("a", 2, 4, is_whole=False)],
        [Part("b", 0, 3, is_whole=True), Part("c", 0, 1, is_whole=True)],
    ]
    assert cut_into_buckets(tensors, 36) == [
        [Part("a", 0, 4, is_whole=True), Part("b", 0, 1, is_whole=False)],
        [Part("b", 1, 3, is_whole=False), Part("c", 0, 1, is_whole=True)],
    ]


def test_a_row_that_is_larger_than_a_bucket_has_one_of_its_own() -> None:
    assert cut_into_buckets({"a": torch.zeros(2, 100), "b": torch.zeros(1)}, 16) == [
        [Part("a", 0, 1, is_whole=False)],
        [Part("a", 1, 2, is_whole=False)],
        [Part("b", 0, 1, is_whole=True)],
    ]


@pytest.mark.parametrize("bucket_bytes", [1, 8, 17, 40, 10**6])
def test_buckets_are_bounded_and_together_are_all_weights_bit_for_bit(bucket_bytes: int) -> None:
    sent = weights()
    held = {name: torch.full_like(tensor, math.nan) for name, tensor in sent.items()}
    count = pack_bucket(sent, 3, 0, bucket_bytes=bucket_bytes, settings={}).buckets
    for index in range(count):
        update = pack_bucket(sent, 3, index, bucket_bytes=bucket_bytes, settings={"temperature": 0.7})
        assert (update.version, update.bucket, update.buckets) == (3, index, count)
        assert update.size_bytes <= max(bucket_bytes, 32)  # the longest row
        received = unpack(update)
        for name, place in place_of(held, received, update.first_rows).items():
            place.copy_(received[name])
    assert largest_mismatch(sent, held) == (None, 0.0)
    assert count == 1 or bucket_bytes < 10**6


def test_the_checksum_covers_the_place_and_the_settings() -> None:
    tensors = {"a": torch.zeros(4, 2)}
    updates = [
        pack_bucket(tensors, 1, 0, bucket_bytes=16, settings={"s": 1.0}),
        pack_bucket(tensors, 1, 1, bucket_bytes=16, settings={"s": 1.0}),
        pack_bucket(tensors, 1, 0, bucket_bytes=16, settings={"s": 2.0}),
    ]
    assert len({update.checksum for update in updates}) == 3


def test_weights_of_another_model_have_no_place() -> None:
    update = pack_bucket({"a": torch.zeros(4, 2)}, 1, 1, bucket_bytes=16, settings={})
    received = unpack(update)
    assert place_of({"a": torch.zeros(4, 2)}, received, update.first_rows)["a"].shape == (2, 2)
    for held in ({}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(4, 3)}):
        with pytest.raises(ValueError, match=r"weight update: a of shape \(2, 2\)"):
            place_of(held, received, update.first_rows)


def test_the_largest_mismatch_is_found_by_name_and_size() -> None:
    expected = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([4.0])}
    assert largest_mismatch(expected, {"a": torch.tensor([1.0, 2.25]), "b": torch.tensor([3.5])}) == ("b", 0.5)
    assert largest_mismatch(expected, {"a": torch.tensor([1.0, math.nan]), "b": torch.tensor([4.0])}) == ("a", math.inf)


def test_the_comparison_is_of_bits() -> None:
    nan, zero = torch.tensor([math.nan]), torch.tensor([0.0])
    assert largest_mismatch({"a": nan}, {"a": nan.clone()}) == (None, 0.0)
    assert largest_mismatch({"a": zero}, {"a": -zero}) == ("a", 0.0)
    tiny = torch.tensor([1.0])
    assert largest_mismatch({"a": tiny}, {"a": torch.nextafter(tiny, tiny + 1)})[0] == "a"
