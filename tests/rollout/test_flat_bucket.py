"""A bucket as one buffer: what lies where, bit for bit, and the checksum that holds on every device."""

import math
from dataclasses import replace

import pytest
import torch

from rollout.flat_bucket import bit_sum, flatten_bucket, tensors_in
from rollout.weight_sync import ChecksumError

SETTINGS = {"temperature": 0.7}


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 2), "b": (3,), "scalar": (), "empty": (0, 4), "wide": (2, 8)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    special = torch.tensor([math.nan, -0.0, math.inf])
    return tensors | {
        "half": torch.randn(5, 3, generator=generator).bfloat16(),
        "special": special,
        "whole": torch.arange(5),
    }


def mixed(word: int, place: int) -> int:
    """One word's share of the sum, in Python's integers."""
    x = (word + place * 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


def test_the_sum_is_that_of_python_integers() -> None:
    words = [0, 1, 2**63 + 5, 2**64 - 1, 77] * 30000  # more than one chunk
    buffer = torch.tensor([w - 2**64 if w >= 2**63 else w for w in words]).view(torch.uint8)
    assert bit_sum(buffer) == sum(mixed(word, place) for place, word in enumerate(words)) % 2**64


def test_a_flipped_bit_and_words_that_trade_places_change_the_sum() -> None:
    words = torch.arange(1000)
    sums = {bit_sum(words.view(torch.uint8))}
    for bit in range(64):
        flipped = words.clone()
        flipped[3] ^= -(2**63) if bit == 63 else 2**bit
        sums.add(bit_sum(flipped.view(torch.uint8)))
    traded = words.clone()
    traded[[3, 900]] = words[[900, 3]]
    sums.add(bit_sum(traded.view(torch.uint8)))
    assert len(sums) == 66


@pytest.mark.parametrize("bucket_bytes", [1, 17, 40, 10**6])
def test_what_is_flattened_comes_out_bit_for_bit_in_its_place(bucket_bytes: int) -> None:
    sent, seen = weights(), dict[str, list[torch.Tensor]]()
    bucket, buckets = 0, 1
    while bucket < buckets:
        manifest, buffer = flatten_bucket(sent, 3, bucket, bucket_bytes=bucket_bytes, settings=SETTINGS)
        assert (manifest.header.version, manifest.header.bucket) == (3, bucket)
        assert len(buffer) == manifest.buffer_bytes
        for name, tensor in tensors_in(buffer.clone(), manifest).items():
            start = manifest.first_rows.get(name)
            expected = sent[name] if start is None else sent[name][start : start + len(tensor)]
            assert tensor.dtype == expected.dtype
            assert tensor.shape == expected.shape
            assert tensor.contiguous().view(-1).view(torch.uint8).equal(expected.reshape(-1).view(torch.uint8))
            seen.setdefault(name, []).append(tensor)
        bucket, buckets = bucket + 1, manifest.header.buckets
    assert seen.keys() == sent.keys()
    assert all(sum(part.numel() for part in parts) == sent[name].numel() for name, parts in seen.items())
    assert (buckets == 1) == (bucket_bytes == 10**6)


def test_damage_to_the_buffer_the_place_or_the_settings_is_found() -> None:
    manifest, buffer = flatten_bucket({"a": torch.ones(4, 2)}, 1, 0, bucket_bytes=16, settings=SETTINGS)
    flipped = buffer.clone()
    flipped[9] ^= 1
    other_row = replace(manifest, pieces=(replace(manifest.pieces[0], first_row=2),))
    damaged = [
        (flipped, manifest),
        (buffer, other_row),
        (buffer, replace(manifest, settings={"temperature": 0.8})),
        (buffer, replace(manifest, header=replace(manifest.header, version=2))),
    ]
    for received, described in damaged:
        with pytest.raises(ChecksumError, match=r"weight update \d has checksum .* after the broadcast"):
            tensors_in(received, described)


def test_each_tensor_is_completed_before_it_is_cut() -> None:
    halves = {"a": torch.ones(1, 2)}
    manifest, buffer = flatten_bucket(
        halves, 1, 0, bucket_bytes=8, settings={}, complete=lambda tensor: torch.cat([tensor, 2 * tensor])
    )
    assert tensors_in(buffer, manifest)["a"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
