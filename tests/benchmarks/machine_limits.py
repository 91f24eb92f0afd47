"""What this machine can do at best, and what it is: measured beside every benchmark that names a share of a limit."""

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn.functional import linear

_LIBRARIES = ("torch", "transformers", "peft", "numpy")
_MATMUL_TOKENS, _MATMUL_SIZE, _COPIED_BYTES = 1024, 1024, 2**28


def matmul_flops(dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, best of many."""
    inputs = torch.randn(_MATMUL_TOKENS, _MATMUL_SIZE).to(dtype)
    weight = torch.randn(_MATMUL_SIZE, _MATMUL_SIZE).to(dtype)
    return 2 * _MATMUL_TOKENS * _MATMUL_SIZE**2 / _best_seconds(lambda: linear(inputs, weight), 50)


def memory_bandwidth() -> float:
    """Bytes a second of a large copy, read and written, best of many."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _best_seconds(lambda: target.copy_(source), 10)


def describe_machine() -> dict[str, object]:
    """Processor, memory, threads, load and library versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **{name: version(name) for name in _LIBRARIES},
    }


def _best_seconds(run: Callable[[], object], times: int) -> float:
    run()
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
