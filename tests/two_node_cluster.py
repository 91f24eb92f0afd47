"""A Ray cluster of two nodes on this machine, in a process of its own, with token authentication on.

python -m tests.two_node_cluster <CPUs of a node>     prints its addresses, and ends with its standard input
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from rlhf.process_environment import PROCESS_ENVIRONMENT

_ROOT = Path(__file__).parents[1]
_TOKEN = "0123456789abcdef0123456789abcdef"
_STORE_BYTES = 100 * 1024**2


@dataclass(frozen=True)
class TwoNodes:
    """Where the cluster listens, and what a process needs in its environment to be let in."""

    address: str
    dashboard: str
    environment: dict[str, str]


@contextmanager
def two_nodes(cpus: int) -> Iterator[TwoNodes]:
    """Starts the cluster and ends it with the context."""
    environment = {**os.environ, **PROCESS_ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _TOKEN}
    environment["PYTHONPATH"] = str(_ROOT)
    command = [sys.executable, "-m", __name__, str(cpus)]
    with subprocess.Popen(
        command, env=environment, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = (line for line in process.stdout if line.startswith("{"))
            yield TwoNodes(**json.loads(next(lines)), environment=environment)
        finally:
            process.stdin.close()


def _serve(cpus: int) -> None:
    sizes: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**sizes, "include_dashboard": True, "dashboard_port": 0})
    cluster.add_node(**sizes)
    print(json.dumps({"address": cluster.address, "dashboard": cluster.webui_url}), flush=True)  # noqa: T201
    sys.stdin.read()
    cluster.shutdown()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
