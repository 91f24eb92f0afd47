import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from rollout.weight_sync import (
    CanaryMismatchError,
    ChecksumError,
    max_abs_difference,
    pack,
    require_canary,
    unpack,
)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(3, 4, generator=generator)
    return {
        "float32": base,
        "bfloat16": base.to(torch.bfloat16),
        "float16": base.half(),
        "float8": base.to(torch.float8_e4m3fn),
        "transposed": base.T,
        "integers": torch.arange(5),
        "scalar": torch.tensor(1.5),
        "scalar_bfloat16": torch.tensor(1.5, dtype=torch.bfloat16),
        "empty": torch.empty(0, 4),
    }


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


def array(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_every_tensor_arrives_bit_for_bit() -> None:
    sent = weights()
    received = unpack(pack(sent, version=3))
    assert received.keys() == sent.keys()
    for name, tensor in sent.items():
        assert received[name].dtype == tensor.dtype
        assert received[name].shape == tensor.shape
        assert bits(received[name]) == bits(tensor)


def test_an_update_is_a_snapshot() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    update = pack({"w": parameter}, version=1)
    with torch.no_grad():
        parameter.add_(1)
    received = unpack(update)
    assert received["w"].tolist() == [1, 1, 1, 1]
    received["w"].zero_()
    assert unpack(update)["w"].tolist() == [1, 1, 1, 1]


def test_equal_weights_have_equal_checksums_in_any_order_of_names() -> None:
    forward, backward = weights(), dict(reversed(weights().items()))
    assert pack(forward, version=1).checksum == pack(backward, version=1).checksum


def test_bytes_are_counted_as_they_travel() -> None:
    assert pack({"a": torch.zeros(3), "b": torch.zeros(5, dtype=torch.bfloat16)}, version=1).size_bytes == 3 * 4 + 5 * 2


def test_arrays_of_shared_memory_that_refuse_writing_are_unpacked_without_a_warning() -> None:
    update = pack({"w": torch.ones(2)}, version=1)
    update.tensors["w"].flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unpack(update)["w"].zero_()


@pytest.mark.parametrize(
    "damage", ["one bit", "swapped names", "reshaped", "other type", "other version", "lost tensor"]
)
def test_any_damage_on_the_way_is_found(damage: str) -> None:
    sent = {"a": torch.ones(2, 2), "b": torch.zeros(2, 2)}
    update = pack(sent, version=4)
    a, b = update.tensors["a"], update.tensors["b"]
    if damage == "one bit":
        flipped = a.copy()
        flipped.view(np.uint32)[1, 1] ^= 1
        update = replace(update, tensors={"a": flipped, "b": b})
    elif damage == "swapped names":
        update = replace(update, tensors={"a": b, "b": a})
    elif damage == "reshaped":
        update = replace(update, tensors={"a": a.reshape(4), "b": b})
    elif damage == "other type":
        update = replace(update, dtypes={"a": "int32", "b": "float32"})
    elif damage == "other version":
        update = replace(update, version=5)
    else:
        update = replace(update, tensors={"a": a})
    with pytest.raises(ChecksumError, match=f"weight update {update.version} has checksum"):
        unpack(update)


def test_the_canary_difference_is_the_largest_over_all_tokens_of_all_sequences() -> None:
    expected = [array(-1.0, -2.0), array(-3.0)]
    actual = [array(-1.25, -2.0), array(-2.5)]
    assert max_abs_difference(expected, actual) == 0.5
    assert max_abs_difference(expected, expected) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_canary_that_is_no_number_differs_infinitely(bad: float) -> None:
    assert max_abs_difference([array(-1.0, -2.0)], [array(-1.0, bad)]) == math.inf
    assert max_abs_difference([array(-1.0, bad)], [array(-1.0, bad)]) == math.inf


@pytest.mark.parametrize("actual", [[], [array(1.0)], [array(1.0, 2.0), array(1.0)]])
def test_canaries_of_other_lengths_are_not_compared(actual: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="compare the same sequences"):
        max_abs_difference([array(1.0, 2.0)], actual)


def test_a_comparison_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="canary"):
        max_abs_difference([], [])


def test_a_tolerable_difference_is_returned_and_a_larger_one_names_the_worker_and_its_size() -> None:
    expected, actual = [array(-1.0)], [array(-1.5)]
    assert require_canary("rollout-1", expected, actual, tolerance=0.5) == 0.5
    with pytest.raises(CanaryMismatchError, match=r"rollout-1 differs from the learner by 0\.5 nats.*allowed are 0\.4"):
        require_canary("rollout-1", expected, actual, tolerance=0.4)
