"""What every test gets: offline libraries, one thread for torch, and one small Ray cluster for those that ask."""

import os
from collections.abc import Iterator
from importlib import import_module

import pytest

# Before any test module imports a library. Tests must not depend on the machine's cores, caches or accounts.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "WANDB_MODE": "offline",
    "WANDB_SILENT": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
os.environ.pop("WANDB_API_KEY", None)
os.environ.pop("RLHF_DEBUG", None)

pytest_plugins = ["tests.fixtures_models"]

OBJECT_STORE_BYTES = 128 * 1024**2


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray cluster of two CPUs that all tests marked `ray` share; it starts with the first of them."""
    ray = import_module("ray")  # here, so that a run without such tests does not wait for it
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
