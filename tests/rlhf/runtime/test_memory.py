"""Memory that was freed and kept goes back to the system when it is asked to."""

import ctypes
import sys
from pathlib import Path

import pytest

from rlhf.runtime.memory import MIB, release_free_memory

BLOCK = 64 * 1024
"""Bytes; below what glibc maps from the system one by one."""
HAS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@pytest.mark.skipif(not HAS_GLIBC, reason="malloc_trim is glibc's")
def test_holes_between_living_blocks_are_released() -> None:
    blocks = [b"x" * BLOCK for _ in range(2000)]
    kept = blocks[::20]
    blocks.clear()
    before = resident_bytes()
    release_free_memory()
    assert resident_bytes() < before - 80 * MIB
    assert all(block == b"x" * BLOCK for block in kept)
