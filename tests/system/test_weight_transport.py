"""Full weights from a learner to two rollout actors: by collective and by object store, bit for bit the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from rlhf.config import PpoConfig
from rlhf.role_groups import CanarySequences, RoleGroups, canaries_of, open_roles
from rlhf.runtime.cluster import RayWorker
from rollout.types import Prompt, RolloutBatch
from tests.rollout.fakes import prompt_of
from tests.tiny_ppo import ppo_config

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]

PROMPTS: list[Prompt] = [prompt_of(str(n), [1, 40 + n, 41]) for n in range(4)]


def config_of(folder: Path, model: Path) -> PpoConfig:
    actor = {"cpus": 0.2}
    placement = {
        "kind": "split",
        "weight_transport": "collective",
        "rollout": {"cpus": 0.2, "workers": 2},
        "learner": actor,
        "reward": actor,
        "reference": actor,
        "timeout_seconds": 120,
    }
    return ppo_config(folder, model, model={"tuning": {"kind": "full"}}, placement=placement)


def rollout(roles: RoleGroups, version: int) -> RolloutBatch:
    return roles.generate(PROMPTS, 2, seed=3, step=1, version=version)


def assert_same(one: RolloutBatch, other: RolloutBatch) -> None:
    for mine, theirs in zip(one.completions, other.completions, strict=True):
        assert mine.token_ids.tolist() == theirs.token_ids.tolist()
        assert mine.logprobs.tolist() == theirs.logprobs.tolist()


def workers_of(roles: RoleGroups) -> list[RayWorker]:
    workers = [post.worker for post in roles.rollout._supervisor._posts]
    assert all(isinstance(worker, RayWorker) for worker in workers)
    return [worker for worker in workers if isinstance(worker, RayWorker)]


def test_a_broadcast_brings_what_the_object_store_brings_and_outlives_a_worker(
    tmp_path: Path, tiny_llama_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_roles(config_of(tmp_path, tiny_llama_folder)) as roles:
        by_object_store = replace(roles, broadcast=None)
        by_object_store.sync(1)
        expected = rollout(roles, 1)
        canaries: CanarySequences = canaries_of(expected)
        metrics = roles.sync(2, canaries=canaries)
        assert metrics["sync/bytes"] > 0
        assert metrics["sync/canary_max_logprob_diff"] < 1e-5
        assert_same(rollout(roles, 2), expected)
        assert not caplog.records

        workers_of(roles)[1].kill()
        assert roles.sync(3, canaries=canaries)["sync/bytes"] == metrics["sync/bytes"]
        assert "go through the object store" in caplog.text
        assert_same(rollout(roles, 3), expected)

        caplog.clear()
        roles.sync(4, canaries=canaries)
        assert_same(rollout(roles, 4), expected)
        assert not caplog.records
