"""The precision of matrix products: what `auto` picks, and that float32 means float32."""

import pytest
import torch

from rlhf.compute_precision import reduced_precision, resolve_compute_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_has_the_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert resolve_compute_dtype("auto", CPU) == expected


def test_a_given_precision_is_taken_whatever_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert resolve_compute_dtype("bfloat16", CPU) == torch.bfloat16
    assert resolve_compute_dtype("float32", CPU) == torch.float32


def test_only_bfloat16_changes_a_product() -> None:
    left, right = torch.randn(4, 8), torch.randn(8, 4)
    for dtype in (torch.float32, torch.bfloat16):
        with reduced_precision(CPU, dtype):
            assert (left @ right).dtype == dtype
