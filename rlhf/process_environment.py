"""Environment variables of every process of a run: telemetry off, library noise down.

They must be set before the libraries are imported, so the command line calls `prepare_environment` first, and whoever
starts processes on other machines hands them `PROCESS_ENVIRONMENT`. What the user has set already stays.
"""

import os
import warnings
from collections.abc import MutableMapping

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
    # GNU OpenMP threads that wait by spinning take the core of the thread they wait for. Two threads on two cores,
    # small layers, steps per second: alone 48 by default, 39 with this; beside one busy process 2.4 and 22.
    "GOMP_SPINCOUNT": "1000",
    # A tokenizer's thread pool does not survive a fork; it warns and may hang.
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment(environment: MutableMapping[str, str] = os.environ) -> None:
    """Sets each variable that is not set yet; call it before any heavy library is imported."""
    for name, value in PROCESS_ENVIRONMENT.items():
        environment.setdefault(name, value)
    # PYTHONWARNINGS came too late for this process.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|trl)\b")
