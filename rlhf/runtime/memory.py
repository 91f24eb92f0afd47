"""How much memory this process has needed so far."""

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
