"""Environment variables of every process of a run: telemetry and noise off, freed memory and few kernels kept.

They must be set before the libraries are imported, so the command line calls `prepare_environment` first, and whoever
starts processes on other machines hands them `PROCESS_ENVIRONMENT`. What the user has set already stays.
"""

import ctypes
import os
import sys
import warnings
from collections.abc import Mapping, MutableMapping

PROCESS_ENVIRONMENT = {
    # Telemetry: nothing is sent that the user did not ask for.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray gives its workers the lowest priority; they are all that a run consists of.
    "RAY_worker_niceness": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_ERROR_REPORTING": "false",
    "DO_NOT_TRACK": "1",
    # Noise: the console belongs to the run's own lines; errors still show.
    "WANDB_SILENT": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    # GNU OpenMP threads that wait by spinning take the core of the thread they wait for; those that sleep come late for
    # the next operation. Seconds of a reward step on two cores, alone and beside a busy process: 0.324 and 0.60 with
    # 1000 rounds, 0.309 and 0.68 with 3000, 0.305 and 0.95 with 10000; without a limit a small model's step takes ten
    # times as long beside a busy process.
    "GOMP_SPINCOUNT": "3000",
    # A tokenizer's thread pool does not survive a fork; it warns and may hang.
    "TOKENIZERS_PARALLELISM": "false",
    # glibc hands large blocks back to the system as they are freed, and the next tensor of their size waits for fresh
    # pages: 7 % of a PPO update in full tuning at 30M parameters. Up to 1 GiB of it stays with the process.
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    # oneDNN keeps 1024 kernels, over half a MiB each, one for every size of a matrix product. A pass needs 50, a PPO
    # step on ragged lengths some hundreds: with room for 128 it takes 8 % longer, with 512 no longer than with 1024.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "512",
}

_MALLOPT_PARAMETERS = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_THRESHOLD_": -3}
"""Numbers of the two settings in glibc's malloc.h."""


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets each variable that is not set yet; call it before any heavy library is imported."""
    for name, value in PROCESS_ENVIRONMENT.items():
        environment.setdefault(name, value)
    # What follows came too late for this process.
    _apply_to_allocator(environment)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\b")


def _apply_to_allocator(environment: Mapping[str, str]) -> None:
    """Tells this process's allocator what glibc reads from the environment at the start; others have no `mallopt`.

    What the user has set was there at the start.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for name, parameter in _MALLOPT_PARAMETERS.items():
        if mallopt is not None and environment[name] == PROCESS_ENVIRONMENT[name]:
            mallopt(parameter, int(environment[name]))
