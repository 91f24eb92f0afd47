"""How much memory this process has needed so far, and what it gives back of it."""

import ctypes
import resource
import sys

import torch

MIB = 2**20


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory of this process, MiB: what torch reserved on a GPU, else the resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts KiB, macOS bytes.
    return peak / MIB if sys.platform == "darwin" else peak / 1024


def release_free_memory() -> None:
    """Hands the system what the C library keeps of freed main memory; for where one phase of a step ends.

    The next phase allocates other sizes, which do not fit into what is left between the blocks of the last one. Takes
    10 to 25 ms for 300 MiB. Without glibc, nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
