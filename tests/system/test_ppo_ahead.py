"""PPO whose rollouts run ahead of the learner, and PPO whose rollout workers are lost: whole runs, without Ray."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf.config import PpoConfig
from rlhf.experience import Experience
from rlhf.learner import Learner
from rlhf.optimization import NonFiniteLossError
from rlhf.roles import RoleHost
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers import ppo
from rollout.buffer import RolloutBuffer
from rollout.supervisor import RolloutWorkerError
from tests.local_actors import without_ray
from tests.system import scripted_rewards
from tests.tiny_ppo import comparable, merged, metrics_of, ppo_config, ppo_settings, run_ppo

TWO_WORKERS = {"kind": "split", "rollout": {"workers": 2}}
SCORE = [{"kind": "function", "function": f"{scripted_rewards.__name__}:score"}]
ABOUT_AGE = ("rollout/policy_", "sync/")


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Five steps on two rollout workers, with samples after every second and checkpoints after every second step."""
    folder = tmp_path_factory.mktemp("ahead")
    changes: dict[str, Any] = {
        "reward": SCORE,
        "placement": TWO_WORKERS,
        "algorithm": {"importance_cap": 2.0, "epochs": 1, "minibatches": 2},
        "rollout": {"responses_per_call": 1},
        "steps": 5,
        "checkpoint": {"every_steps": 2},
        "micro_batch_tokens": 4096,
    }
    return ppo_settings(folder, tiny_llama_folder, **changes)


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    without_ray(monkeypatch)


def config_of(settings: Mapping[str, Any], run_dir: Path, **changes: Any) -> PpoConfig:
    return PpoConfig.model_validate(merged(settings, run_dir=str(run_dir), **changes))


@pytest.fixture(scope="module")
def straight(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], RunFiles]:
    """The undisturbed run with rollouts that are so many updates ahead."""

    @cache
    def run(age: int) -> RunFiles:
        with pytest.MonkeyPatch.context() as monkeypatch:
            without_ray(monkeypatch)
            folder = tmp_path_factory.mktemp(f"age-{age}")
            return run_ppo(config_of(settings, folder / "run", rollout={"max_policy_age": age}))

    return run


def numbers(run: RunFiles, *, leave_out: tuple[str, ...] = ()) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if not k.startswith(leave_out)} for row in comparable(run.read_metrics())]


def samples(run: RunFiles, *, leave_out: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """The sample table; `leave_out` names metrics, and the version of a sample goes with that of its rollout."""
    is_left_out = "rollout/policy_version".startswith(leave_out)
    return [{k: v for k, v in row.items() if k != "policy_version" or not is_left_out} for row in run.read_samples()]


def model_of(run: RunFiles) -> bytes:
    return (run.path / "model" / "adapter_model.safetensors").read_bytes()


def assert_equal_bitwise(actual: RunFiles, expected: RunFiles, *, leave_out: tuple[str, ...] = ()) -> None:
    assert len(expected.read_metrics()) == 5
    assert numbers(actual, leave_out=leave_out) == numbers(expected, leave_out=leave_out)
    assert samples(actual, leave_out=leave_out) == samples(expected, leave_out=leave_out)
    assert model_of(actual) == model_of(expected)


# --- ahead of the learner ---------------------------------------------------------------------------------------------


def test_age_0_on_the_thread_of_running_ahead_gives_the_synchronous_numbers_bitwise(
    straight: Callable[[int], RunFiles], settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a rollout is made by when the bound is above 0.
    monkeypatch.setattr(ppo, "RolloutBuffer", lambda *, cancel, **_: RolloutBuffer(max_policy_age=1, cancel=cancel))
    assert_equal_bitwise(run_ppo(config_of(settings, tmp_path / "run")), straight(0))
    assert [row["rollout/policy_age"] for row in metrics_of(straight(0))] == [0] * 5


@pytest.mark.parametrize("age", [1, 2])
def test_step_k_learns_from_samples_of_version_k_less_the_age(straight: Callable[[int], RunFiles], age: int) -> None:
    rows = metrics_of(straight(age))
    versions = [max(0, step - age) for step in range(5)]
    assert [row["rollout/policy_version"] for row in rows] == versions
    assert [row["rollout/policy_age"] for row in rows] == [step - version for step, version in enumerate(versions)]
    assert [row["rollout/stale"] for row in rows] == [0] * 5
    for row in rows:
        require_documented(row.keys() - {"step"})
        # Whatever the age, the clip is centred on the policy that the update starts from.
        assert row["policy/first_step_ratio_error"] < 1e-5
        assert row.get("sync/canary_max_logprob_diff", 0.0) < 1e-4
    # On-policy samples have weight 1; those of an older policy do not.
    weights = [row["policy/importance_weight_mean"] for row in rows]
    assert weights[0] == pytest.approx(1, abs=1e-5)
    assert all(abs(weight - 1) > 1e-4 for weight in weights[1:])
    assert sum("sync/canary_max_logprob_diff" in row for row in rows) >= 2


def test_sampling_hides_behind_the_learner(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowed(method: str, seconds: float) -> None:
        original = getattr(RoleHost, method)

        def slow(host: RoleHost, *arguments: Any, **keywords: Any) -> Any:
            time.sleep(seconds)
            return original(host, *arguments, **keywords)

        monkeypatch.setattr(RoleHost, method, slow)

    # As if each had a device of its own; one call a step.
    slowed("generate", 0.2)
    slowed("update", 0.4)
    changes = {"placement": {"kind": "split"}, "sample_prompts": 0}
    rollout = {"max_policy_age": 1, "responses_per_call": 512}
    rows = metrics_of(run_ppo(config_of(settings, tmp_path / "run", **changes, rollout=rollout)))[1:]
    assert min(row["time/rollout"] for row in rows) > 0.2
    assert np.median([row["time/rollout_wait"] for row in rows]) < 0.1


def test_with_a_policy_that_stands_still_running_ahead_changes_nothing(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    still = merged(settings, optimizer={"learning_rate": 1e-30})
    together, ahead = (
        run_ppo(config_of(still, tmp_path / f"age-{age}", rollout={"max_policy_age": age})) for age in (0, 2)
    )
    assert_equal_bitwise(ahead, together, leave_out=ABOUT_AGE)


@pytest.mark.parametrize(
    "call",
    [pytest.param(3, id="before the first checkpoint", marks=pytest.mark.slow), pytest.param(6, id="between two")],
)
def test_an_interrupted_run_that_was_ahead_continues_to_the_same_numbers_bitwise(
    straight: Callable[[int], RunFiles],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    config = config_of(settings, tmp_path / "interrupted", rollout={"max_policy_age": 2})
    monkeypatch.setattr(scripted_rewards, "calls", 0)
    monkeypatch.setenv("INTERRUPT_AT_CALL", str(call))
    with pytest.raises(KeyboardInterrupt):
        run_ppo(config)
    monkeypatch.delenv("INTERRUPT_AT_CALL")
    assert_equal_bitwise(run_ppo(config, resume=True), straight(2))


def test_a_run_that_diverges_ahead_saves_a_state_that_goes_on(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = Learner.update

    def poisoned(learner: Learner, experience: Experience, *, step: int) -> dict[str, float]:
        if step == 2:
            experience = replace(experience, advantages=[np.full_like(row, np.nan) for row in experience.advantages])
        return update(learner, experience, step=step)

    config = config_of(settings, tmp_path / "run", rollout={"max_policy_age": 1}, sample_prompts=0)
    monkeypatch.setattr(Learner, "update", poisoned)
    with pytest.raises(NonFiniteLossError):
        run_ppo(config)
    monkeypatch.setattr(Learner, "update", update)
    run = run_ppo(config, resume=True)
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    assert [row["rollout/policy_age"] for row in run.read_metrics()] == [0, 1, 1, 1, 1]


def test_running_ahead_without_correction_or_on_the_learners_own_weights_is_refused_in_one_line(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    def refusal(**changes: Any) -> str:
        with pytest.raises(ValueError, match=r"rollout\.max_policy_age=1") as caught:
            ppo_config(tmp_path, tiny_llama_folder, rollout={"max_policy_age": 1}, **changes)
        return str(caught.value)

    assert "set algorithm.importance_cap (2 is a usual value)" in refusal(placement={"kind": "split"})
    assert "placement.kind=in_process has them in one process: set placement.kind=split" in refusal(
        algorithm={"importance_cap": 2.0}
    )


# --- workers that are lost --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("age", [0, 1])
def test_a_run_that_loses_rollout_workers_ends_with_the_same_numbers(
    straight: Callable[[int], RunFiles],
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    age: int,
) -> None:
    expected = straight(age)
    without_ray(monkeypatch, dies_at={"rollout-0": [1, 2, 7], "rollout-1": [4]})
    run = run_ppo(config_of(settings, tmp_path / "losing", rollout={"max_policy_age": age}))
    assert_equal_bitwise(run, expected, leave_out=("rollout/restarts", "rollout/retries"))
    assert sum(row["rollout/restarts"] for row in metrics_of(run)) >= 3
    assert sum(row["rollout/restarts"] for row in metrics_of(expected)) == 0


def test_a_rollout_worker_that_always_dies_ends_the_run_with_the_cause(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch, dies_at={"rollout-1": range(100)})
    config = config_of(settings, tmp_path / "run", rollout={"max_worker_restarts": 1, "max_policy_age": 1})
    with pytest.raises(RolloutWorkerError, match=r"rollout-1 was lost 2 times .*: actor rollout-1 died"):
        run_ppo(config)
