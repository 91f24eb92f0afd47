"""A job on a cluster of two nodes: a learner of two ranks, reached by address and by `ray job submit`."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PpoConfig
from rlhf.runtime.run_folder import RunFiles
from tests.tiny_ppo import comparable, merged, metrics_of, ppo_settings, run_ppo, with_ptx, write_yaml
from tests.two_node_cluster import TwoNodes, two_nodes

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
# Each rank needs more than half of a node's two CPUs, so there is one on each node.
LEARNER = {"workers": 2, "cpus": 1.5}


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with two_nodes(cpus=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cluster")
    changes: dict[str, Any] = {
        # Small enough that rounding, which Adam and the clips amplify, stays rounding.
        "optimizer": {"learning_rate": 1e-3},
        "critic": {"optimizer": {"learning_rate": 1e-4}},
        "steps": 2,
        "micro_batch_tokens": 24,
    }
    return with_ptx(folder, ppo_settings(folder, tiny_llama_folder, **changes))


@pytest.fixture(scope="module")
def straight(settings: dict[str, Any]) -> RunFiles:
    """The run in this process that the cluster must repeat."""
    return run_ppo(PpoConfig.model_validate(settings))


def placed(settings: dict[str, Any], folder: Path, *, address: str, learner: Mapping[str, Any]) -> Path:
    placement = {"kind": "split", "address": address, "learner": dict(learner), "timeout_seconds": 120}
    return write_yaml(folder, merged(settings, run_dir=str(folder / "run"), placement=placement))


def called(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=dict(environment), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )


def assert_repeats(run: RunFiles, straight: RunFiles) -> None:
    for mine, theirs in zip(comparable(metrics_of(run)), comparable(metrics_of(straight)), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_ranks_on_two_nodes_repeat_the_run_of_one_process(
    nodes: TwoNodes, settings: dict[str, Any], straight: RunFiles, tmp_path: Path, sharding: str
) -> None:
    config = placed(settings, tmp_path, address=nodes.address, learner={**LEARNER, "sharding": sharding})
    result = called([sys.executable, "-m", "rlhf.cli", "ppo", str(config)], nodes.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_repeats(RunFiles(str(tmp_path / "run")), straight)


def test_a_submitted_job_joins_the_cluster_that_runs_it(
    nodes: TwoNodes, settings: dict[str, Any], straight: RunFiles, tmp_path: Path
) -> None:
    config = placed(settings, tmp_path, address="auto", learner=LEARNER)
    submit = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", f"http://{nodes.dashboard}"]
    entrypoint = ["--", sys.executable, "-m", "rlhf.cli", "ppo", str(config)]
    result = called([*submit, *entrypoint], nodes.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_repeats(RunFiles(str(tmp_path / "run")), straight)


def test_a_process_without_the_token_is_told_what_it_lacks(
    nodes: TwoNodes, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = placed(settings, tmp_path, address=nodes.address, learner=LEARNER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong"}
    result = called([sys.executable, "-m", "rlhf.cli", "ppo", str(config)], environment)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "error: placement.address: the Ray cluster at" in result.stderr
    assert "RAY_AUTH_TOKEN" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_actor_larger_than_any_node_is_refused_at_once(
    nodes: TwoNodes, settings: dict[str, Any], tmp_path: Path
) -> None:
    config = placed(settings, tmp_path, address=nodes.address, learner={"cpus": 3})
    result = called([sys.executable, "-m", "rlhf.cli", "ppo", str(config)], nodes.environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert "error: placement: actor learner asks for 3 CPUs and 0 GPUs and fits on none of the cluster's 2" in (
        result.stderr
    )
