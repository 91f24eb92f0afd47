"""PPO killed by SIGKILL at every kind of moment and resumed: bit by bit the run that nobody disturbed."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from rlhf.config import PpoConfig
from rlhf.runtime.run_folder import RunFiles
from tests.local_actors import without_ray
from tests.system.killed_runs import KillPoint, run_until_killed
from tests.tiny_ppo import merged, ppo_settings, run_ppo, with_ptx, write_reward_adapter

CLOCK = ("time/", "perf/")

# Four steps; answers of the samples before the first step, after the second and after the fourth; checkpoints after the
# second and the fourth. Each step has four minibatches.
POINTS = {
    "sampling": KillPoint("rlhf.roles:RoleHost.generate", 5),
    "scoring": KillPoint("reward.worker:RewardWorker.score", 5),
    "reference": KillPoint("rlhf.roles:RoleHost.reference_logprobs", 3),
    "values": KillPoint("rlhf.roles:RoleHost.values", 4),
    "first minibatch, policy moved and critic not": KillPoint("rlhf.trained_model:TrainedModel.step", 18),
    "later minibatch": KillPoint("rlhf.learner:Learner._minibatch", 12, "after"),
    "publish": KillPoint("rlhf.role_groups:RoleGroups.publish", 4),
    "sync": KillPoint("rollout.pool:RolloutPool.verify_canary", 3, "after"),
    "half a metrics line": KillPoint("rlhf.runtime.run_folder:RunFolder.append_metrics", 3, "after", "metrics.jsonl"),
    "half the samples": KillPoint("rlhf.runtime.run_folder:RunFolder.append_samples", 3, "after", "samples.jsonl"),
    "half the tensors of a checkpoint": KillPoint(
        "rlhf.runtime.training_state:save_file", 2, "after", "checkpoints/*.tmp-*/state.safetensors"
    ),
    "a checkpoint without its manifest": KillPoint("rlhf.runtime.training_state:_sha256", 3),
    "a checkpoint before it has its name": KillPoint("policies.checkpoint:_replace", 2),
    "a checkpoint with its name, before older ones go": KillPoint("policies.checkpoint:_replace", 2, "after"),
    "between steps": KillPoint("rlhf.trainers.ppo:PpoTrainer.step", 4),
    "before the first checkpoint": KillPoint("rlhf.trainers.ppo:PpoTrainer.step", 2),
    "final model": KillPoint("rlhf.roles:RoleHost.save_model", 1),
}
QUICK = ("later minibatch", "half a metrics line", "half the tensors of a checkpoint", "sampling")


@pytest.fixture(scope="module")
def life(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """PPO-ptx with an adaptive KL coefficient, a critic that starts from the reward model, and every kind of state."""
    folder = tmp_path_factory.mktemp("life")
    reward = write_reward_adapter(folder / "reward", tiny_llama_folder)
    source = {"kind": "model", "name": "proxy", "path": str(reward), "device": "cpu"}
    kl = {"kind": "adaptive", "coefficient": 0.1, "target": 0.5, "horizon": 10.0}
    changes: dict[str, Any] = {
        "reward": [source, {"kind": "length", "maximum_words": 2}],
        "steps": 4,
        "algorithm": {"kl": kl, "importance_cap": 2.0},
        "optimizer": {"warmup_fraction": 0.2, "weight_decay": 0.01},
        "checkpoint": {"every_steps": 2, "keep_last": 1},
        "micro_batch_tokens": 4096,
    }
    return with_ptx(folder, ppo_settings(folder, tiny_llama_folder, **changes))


@pytest.fixture(scope="module")
def straight(life: dict[str, Any]) -> RunFiles:
    return run_ppo(PpoConfig.model_validate(life))


def numbers(run: RunFiles) -> list[dict[str, str]]:
    """The metrics lines without what the clock decides; texts, because -0.0 equals 0.0 and NaN nothing."""
    rows = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    return [{key: json.dumps(value) for key, value in row.items() if not key.startswith(CLOCK)} for row in rows]


def assert_equal_bitwise(actual: RunFiles, expected: RunFiles) -> None:
    assert [row["step"] for row in numbers(actual)] == ["1", "2", "3", "4"]
    assert numbers(actual) == numbers(expected)
    assert actual.read_samples() == expected.read_samples()
    assert actual.read_alerts() == expected.read_alerts()
    last = "checkpoints/step-00000004"
    for file in ("model/adapter_model.safetensors", f"{last}/state.safetensors", f"{last}/state.json"):
        assert (actual.path / file).read_bytes() == (expected.path / file).read_bytes(), file
    # Killed between the last checkpoint and the removal of the one before, a run leaves both, and nothing half.
    assert {path.name for path in actual.checkpoints_path.iterdir()} <= {"step-00000002", "step-00000004"}


@pytest.mark.parametrize(
    "moment", [moment if moment in QUICK else pytest.param(moment, marks=pytest.mark.slow) for moment in POINTS]
)
def test_a_run_killed_at_any_moment_continues_to_the_same_numbers(
    tmp_path: Path, life: dict[str, Any], straight: RunFiles, moment: str
) -> None:
    settings = merged(life, run_dir=str(tmp_path / "run"))
    run_until_killed(settings, POINTS[moment])
    assert not RunFiles(settings["run_dir"]).summary_path.exists()
    assert_equal_bitwise(run_ppo(PpoConfig.model_validate(settings), resume=True), straight)


def test_the_run_has_state_of_every_kind_to_lose(straight: RunFiles) -> None:
    """Or the comparison above could not fail."""
    rows = straight.read_metrics()
    assert all(len({row[key] for row in rows}) == 4 for key in ("objective/kl_coef", "loss/ptx", "policy/lr"))
    assert all(len({row[key] for row in rows}) > 1 for key in ("objective/scores", "loss/value", "policy/grad_norm"))


def test_a_finished_run_that_is_resumed_stays_as_it_is(straight: RunFiles, life: dict[str, Any]) -> None:
    summary, metrics = straight.read_summary(), straight.metrics_path.read_bytes()
    model = (straight.path / "model" / "adapter_model.safetensors").read_bytes()
    again = run_ppo(PpoConfig.model_validate(life), resume=True)
    assert again.metrics_path.read_bytes() == metrics
    assert again.read_summary() == summary
    assert (again.path / "model" / "adapter_model.safetensors").read_bytes() == model


# --- other states -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_killed_twice_continues_to_the_same_numbers(
    tmp_path: Path, life: dict[str, Any], straight: RunFiles
) -> None:
    settings = merged(life, run_dir=str(tmp_path / "run"))
    run_until_killed(settings, POINTS["later minibatch"])
    run_until_killed(settings, KillPoint("policies.checkpoint:_replace", 1, "after"), resume=True)
    assert_equal_bitwise(run_ppo(PpoConfig.model_validate(settings), resume=True), straight)


@pytest.mark.slow
@pytest.mark.parametrize("call", [4, 6], ids=["before a checkpoint", "after a checkpoint"])
def test_a_run_with_samples_ahead_continues_to_the_same_numbers(
    tmp_path: Path, life: dict[str, Any], monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    without_ray(monkeypatch)
    changes: dict[str, Any] = {"placement": {"kind": "split"}, "rollout": {"max_policy_age": 2}}
    straight = run_ppo(PpoConfig.model_validate(merged(life, run_dir=str(tmp_path / "straight"), **changes)))
    settings = merged(life, run_dir=str(tmp_path / "killed"), **changes)
    run_until_killed(settings, KillPoint("rlhf.roles:RoleHost.generate", call, "after"))
    assert_equal_bitwise(run_ppo(PpoConfig.model_validate(settings), resume=True), straight)


@pytest.mark.slow
def test_full_tuning_in_bfloat16_continues_to_the_same_numbers(tmp_path: Path, life: dict[str, Any]) -> None:
    changes: dict[str, Any] = {
        "model": {"tuning": {"kind": "full"}, "dtype": "bfloat16"},
        "critic": {"kind": "model", "optimizer": {"learning_rate": 1e-3}},
        "optimizer": {"learning_rate": 1e-3},
    }
    straight = run_ppo(PpoConfig.model_validate(merged(life, run_dir=str(tmp_path / "straight"), **changes)))
    settings = merged(life, run_dir=str(tmp_path / "killed"), **changes)
    run_until_killed(settings, POINTS["first minibatch, policy moved and critic not"])
    resumed = run_ppo(PpoConfig.model_validate(settings), resume=True)
    assert numbers(resumed) == numbers(straight)
    last = "checkpoints/step-00000004/state.safetensors"
    assert (resumed.path / last).read_bytes() == (straight.path / last).read_bytes()


# --- the best step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["straight", pytest.param("killed", marks=pytest.mark.slow)])
def test_the_policy_of_the_best_step_is_kept_with_its_checkpoint(
    tmp_path: Path, life: dict[str, Any], straight: RunFiles, kind: str
) -> None:
    worst_at_the_end = {"metric": "progress/episodes", "direction": "lower"}
    settings = merged(life, run_dir=str(tmp_path / "run"), checkpoint={"keep_best": worst_at_the_end})
    if kind == "killed":
        run_until_killed(settings, KillPoint("policies.checkpoint:_replace", 2))
    run = run_ppo(PpoConfig.model_validate(settings), resume=kind == "killed")
    assert sorted(path.name for path in run.checkpoints_path.iterdir()) == ["step-00000001", "step-00000004"]
    assert run.read_summary()["best"] == {"step": 1, "progress/episodes": 4.0}
    adapter = "adapter_model.safetensors"
    best, policy = load_file(run.path / "best" / adapter), load_file(run.path / "model" / adapter)
    saved = load_file(run.checkpoints_path / "step-00000001" / "state.safetensors")
    assert all((best[name] == saved[f"policy.{name}"]).all() for name in best)
    assert any((best[name] != policy[name]).any() for name in best)
    # What is kept changes no number.
    assert numbers(run) == numbers(straight)
