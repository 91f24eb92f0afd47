"""Whole PPO runs on tiny models: the same in every placement, resumed after a kill, stopped by a loss of NaN."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file
from transformers import PreTrainedTokenizerBase

from policies.config import ModelConfig
from policies.loading import load_backbone
from policies.tokenization import train_tokenizer
from reward.config import ModelSource
from reward.interface import RewardRequest
from reward.model import RewardModel
from rlhf.config import PpoConfig
from rlhf.experience import Experience, NoScoredSamplesError
from rlhf.learner import Learner
from rlhf.optimization import NonFiniteLossError
from rlhf.roles import RoleHost
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_state import load_latest_checkpoint
from rollout.responses import NonFiniteLogitsError
from tests.local_actors import without_ray
from tests.rlhf.runtime.test_metrics import items, records_of
from tests.system import scripted_rewards
from tests.tiny_models import build_model
from tests.tiny_ppo import (
    REWARD_SCALE,
    STORIES,
    comparable,
    merged,
    metrics_of,
    ppo_config,
    ppo_settings,
    run_ppo,
    with_ptx,
    write_reward_adapter,
    write_yaml,
)

ROOT = Path(__file__).parents[2]


def scripted(function: str) -> list[dict[str, str]]:
    """The reward section for one of the scripted functions."""
    return [{"kind": "function", "function": f"{scripted_rewards.__name__}:{function}"}]


def command_line(config: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`rlhf ppo config` in a process of its own."""
    command = [sys.executable, "-m", "rlhf.cli", "ppo", str(config)]
    return subprocess.run(
        command, env=os.environ | environment, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False
    )


def said(run: RunFiles) -> list[tuple[Any, ...]]:
    return [(row["step"], row["prompt_id"], row["response"]) for row in run.read_samples()]


def column(run: RunFiles, key: str) -> np.ndarray:
    return np.array([row[key] for row in metrics_of(run)], np.float64)


# --- placements -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared_settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """PPO-ptx against a reward model on the policy's base: colocated roles share it, split ones have their own."""
    folder = tmp_path_factory.mktemp("placements")
    reward = write_reward_adapter(folder / "reward", tiny_llama_folder)
    source = {"kind": "model", "name": "proxy", "path": str(reward), "device": "cpu"}
    # Small enough that rounding, which Adam and the clips amplify, stays rounding.
    critic = {"optimizer": {"learning_rate": 1e-4}}
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 1e-3}, "critic": critic, "steps": 2, "reward": [source]}
    return with_ptx(folder, ppo_settings(folder, tiny_llama_folder, **changes))


@pytest.fixture(scope="module")
def straight(shared_settings: dict[str, Any]) -> RunFiles:
    """The run in this process that every placement must repeat."""
    return run_ppo(PpoConfig.model_validate(shared_settings))


def placed(settings: dict[str, Any], folder: Path, **placement: Any) -> PpoConfig:
    return PpoConfig.model_validate(merged(settings, run_dir=str(folder / "run"), placement=placement))


def assert_same_numbers(actual: RunFiles, expected: RunFiles) -> None:
    assert said(actual) == said(expected)
    assert said(expected)
    rows = comparable(actual.read_metrics()), comparable(expected.read_metrics())
    assert len(rows[0]) == len(rows[1]) == 2
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-4)


TWO_WORKERS = {"rollout": {"workers": 2}, "reward": {"workers": 2}}


def test_two_workers_on_models_of_their_own_repeat_the_run_of_roles_on_one_base(
    straight: RunFiles, shared_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    apart = run_ppo(placed(shared_settings, tmp_path, kind="split", **TWO_WORKERS))
    assert_same_numbers(apart, straight)
    assert all(row["sync/bytes"] for row in apart.read_metrics())


@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_colocated_actor_repeats_the_run_of_this_process(
    straight: RunFiles, shared_settings: dict[str, Any], tmp_path: Path
) -> None:
    run = run_ppo(placed(shared_settings, tmp_path, kind="colocated", cpus=1))
    assert_same_numbers(run, straight)
    # Written by the actor, loadable here.
    trained, expected = (load_file(r.path / "model" / "adapter_model.safetensors") for r in (run, straight))
    assert all(np.allclose(trained[name], expected[name], atol=1e-5) for name in expected)


# Six processes that import torch; above, the same roles and the same code run without them.
@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_in_actors_repeat_the_run_of_this_process(
    straight: RunFiles, shared_settings: dict[str, Any], tmp_path: Path
) -> None:
    run = run_ppo(placed(shared_settings, tmp_path, kind="split", **TWO_WORKERS))
    assert_same_numbers(run, straight)
    assert all(row["sync/bytes"] for row in run.read_metrics())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_in_an_actor_is_resumed_bitwise(shared_settings: dict[str, Any], tmp_path: Path) -> None:
    config = placed(shared_settings, tmp_path, kind="colocated", cpus=1)
    run = run_ppo(config)
    metrics, samples, model = comparable(run.read_metrics()), run.read_samples(), adapter_of(run)
    # As if it had been killed during the second step.
    shutil.rmtree(run.checkpoints_path / "step-00000002")
    run_ppo(config, resume=True)
    assert comparable(run.read_metrics()) == metrics
    assert run.read_samples() == samples
    assert adapter_of(run) == model


# --- learning ---------------------------------------------------------------------------------------------------------


def test_ppo_raises_the_score_it_is_paid_for_and_the_penalty_holds_it_back(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    def trained(coefficient: float) -> RunFiles:
        changes: dict[str, Any] = {
            "run_dir": str(tmp_path / f"run-{coefficient}"),
            "reward": scripted("vowels"),
            "rollout": {"prompts_per_step": 64, "sampling": {"max_response_tokens": 4}},
            "algorithm": {"kl": {"kind": "fixed", "coefficient": coefficient}, "epochs": 2, "minibatches": 1},
            "optimizer": {"schedule": "constant"},
            "micro_batch_tokens": 4096,
            "steps": 14,
            "sample_prompts": 0,
            "checkpoint": {"every_steps": 100},
        }
        return run_ppo(ppo_config(tmp_path, tiny_llama_folder, **changes))

    free, held = trained(0.0), trained(1.0)
    assert column(free, "objective/scores")[-3:].mean() > 2 * column(free, "objective/scores")[:3].mean()
    assert abs(column(held, "objective/kl")[-3:].mean()) < 0.3 * column(free, "objective/kl")[-3:].mean()
    assert column(held, "objective/scores")[-3:].mean() < column(free, "objective/scores")[-3:].mean()
    summary = free.read_summary()
    assert (summary["steps"], summary["episodes"]) == (14, 14 * 64)
    assert cast(float, summary["score_rise_in_start_stds"]) > 0.5


# --- a run folder through its life ------------------------------------------------------------------------------------


def test_a_run_leaves_metrics_samples_summary_report_model_and_checkpoints(
    straight: RunFiles, shared_settings: dict[str, Any]
) -> None:
    assert [row["step"] for row in straight.read_metrics()] == [1, 2]
    samples = straight.read_samples()
    assert [row["step"] for row in samples if row["kind"] == "fixed"] == [0, 0, 2, 2]
    assert [row["kind"] for row in samples if row["step"] == 2] == ["fixed"] * 2 + ["worst"] * 3 + ["longest"] * 3
    # The first policy is the reference.
    assert [row["kl"] for row in samples if row["step"] == 0] == pytest.approx([0.0, 0.0], abs=1e-5)
    assert all(row["reward/proxy"] == row["score"] for row in samples)
    assert straight.report_path.stat().st_size > 1000
    assert sorted(path.name for path in straight.checkpoints_path.iterdir()) == ["step-00000001", "step-00000002"]
    summary, rows = straight.read_summary(), straight.read_metrics()
    assert summary["score_start"] == rows[0]["objective/scores"]
    assert summary["kl"] == rows[-1]["objective/kl"]
    assert summary["pretrain_ppl"] == rows[-1]["eval/pretrain_perplexity"]
    assert summary["episodes"] == 8
    # The model answers like the policy that the checkpoint holds.
    backbone = load_backbone(ModelConfig(path=str(straight.path / "model"), device="cpu"))
    checkpoint = load_latest_checkpoint(straight.checkpoints_path)
    assert checkpoint is not None
    saved, trained = backbone.adapters.state("policy"), checkpoint.tensors_of("policy")
    assert all(np.array_equal(saved[name].numpy(), trained[name].numpy()) for name in trained)
    assert PpoConfig.model_validate(straight.read_config()) == PpoConfig.model_validate(shared_settings)


@pytest.fixture(scope="module")
def life(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four steps of PPO-ptx with checkpoints and samples after every second one, scored by the scripted function.

    Its calls: 1 first samples, 2 and 3 steps, 4 samples, 5 and 6 steps, 7 samples.
    """
    folder = tmp_path_factory.mktemp("life")
    changes: dict[str, Any] = {"steps": 4, "checkpoint": {"every_steps": 2}, "micro_batch_tokens": 4096}
    return with_ptx(folder, ppo_settings(folder, tiny_llama_folder, reward=scripted("score"), **changes))


@pytest.fixture(scope="module")
def uninterrupted(life: dict[str, Any]) -> RunFiles:
    return run_ppo(PpoConfig.model_validate(life))


def adapter_of(run: RunFiles) -> bytes:
    return (run.path / "model" / "adapter_model.safetensors").read_bytes()


def assert_equal_bitwise(actual: RunFiles, expected: RunFiles) -> None:
    assert [row["step"] for row in actual.read_metrics()] == [1, 2, 3, 4]
    assert comparable(actual.read_metrics()) == comparable(expected.read_metrics())
    assert actual.read_samples() == expected.read_samples()
    assert adapter_of(actual) == adapter_of(expected)


@pytest.mark.parametrize("call", [1, 2, 4, 7], ids=["first samples", "first step", "samples between", "last samples"])
def test_an_interrupted_run_continues_to_the_same_numbers_bitwise(
    tmp_path: Path, life: dict[str, Any], uninterrupted: RunFiles, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    config = PpoConfig.model_validate(merged(life, run_dir=str(tmp_path / "interrupted")))
    monkeypatch.setattr(scripted_rewards, "calls", 0)
    monkeypatch.setenv("INTERRUPT_AT_CALL", str(call))
    with pytest.raises(KeyboardInterrupt):
        run_ppo(config)
    monkeypatch.delenv("INTERRUPT_AT_CALL")
    assert_equal_bitwise(run_ppo(config, resume=True), uninterrupted)


# --- rewards and losses that are no numbers ---------------------------------------------------------------------------


def test_a_reward_that_scores_nothing_stops_the_run_with_the_reason(
    tmp_path: Path, tiny_llama_folder: Path, recwarn: pytest.WarningsRecorder
) -> None:
    reason = r"^none of 4 samples was scored: nothing: .*scripted_rewards:nothing gave no finite number$"
    with pytest.raises(NoScoredSamplesError, match=reason):
        run_ppo(ppo_config(tmp_path, tiny_llama_folder, reward=scripted("nothing")))
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_a_reward_that_fails_at_times_loses_only_those_samples(tmp_path: Path, tiny_llama_folder: Path) -> None:
    rows = run_ppo(ppo_config(tmp_path, tiny_llama_folder, reward=scripted("some"), steps=2)).read_metrics()
    assert [row["rollout/dropped"] for row in rows] == [2, 2]
    # What was scored: 1 and 3.
    assert [row["objective/scores"] for row in rows] == [2, 2]
    assert [row["reward/some"] for row in rows] == [2, 2]


def test_a_loss_that_is_no_number_stops_the_command_with_saved_state_and_reason(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    settings = ppo_settings(tmp_path, tiny_llama_folder, optimizer={"learning_rate": 1e30})
    process = command_line(write_yaml(tmp_path, settings))
    assert process.returncode == 1
    # The whole of stderr: one line without a traceback.
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: policy loss is nan at step 1; training stopped before it reached the weights")
    # --resume would run into the same loss, so it is not offered.
    assert line.endswith(f"; state saved in {tmp_path / 'run' / 'checkpoints'}")
    state = load_latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert state is not None
    assert (state.step, state.values["learner"]["policy_updates"]) == (0, 1)
    assert all(np.isfinite(tensor.numpy()).all() for tensor in state.tensors.values())


@pytest.mark.parametrize(("every_steps", "kept"), [(1, [3]), (2, [2, 3])])
def test_earlier_checkpoints_outlive_the_state_of_a_run_that_diverged(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch, every_steps: int, kept: list[int]
) -> None:
    update = Learner.update

    def poisoned(learner: Learner, experience: Experience, *, step: int) -> dict[str, float]:
        if step == 3:
            nan = [np.full_like(row, np.nan) for row in experience.advantages]
            experience = replace(experience, advantages=nan)
        return update(learner, experience, step=step)

    monkeypatch.setattr(Learner, "update", poisoned)
    checkpoint = {"every_steps": every_steps, "keep_last": 1}
    changes: dict[str, Any] = {"checkpoint": checkpoint, "steps": 5, "micro_batch_tokens": 4096, "sample_prompts": 0}
    config = ppo_config(tmp_path, tiny_llama_folder, **changes)
    with pytest.raises(NonFiniteLossError, match="policy loss is nan"):
        run_ppo(config)
    run = RunFiles(config.run_dir)
    assert sorted(path.name for path in run.checkpoints_path.iterdir()) == [f"step-{step:08d}" for step in kept]
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]

    # And what was saved is good: without the poison, the run goes on.
    monkeypatch.setattr(Learner, "update", update)
    assert [row["step"] for row in run_ppo(config, resume=True).read_metrics()] == [1, 2, 3, 4, 5]


def test_an_update_that_ruins_the_policy_is_named_as_such(tmp_path: Path, tiny_llama_folder: Path) -> None:
    # One update a step: no second pass sees the ruined weights, the canaries do.
    algorithm = {"epochs": 1, "minibatches": 1}
    config = ppo_config(tmp_path, tiny_llama_folder, optimizer={"learning_rate": 1e30}, algorithm=algorithm)
    with pytest.raises(NonFiniteLogitsError, match=r"not finite at version 1; .*lower optimizer\.learning_rate"):
        run_ppo(config)


# --- two tokenizers ---------------------------------------------------------------------------------------------------


def test_a_reward_model_with_another_tokenizer_reads_the_text(
    tmp_path: Path, tiny_llama_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    other = train_tokenizer(STORIES, vocabulary_size=280)
    base = tmp_path / "base"
    build_model("gpt2", 280).save_pretrained(base)
    other.save_pretrained(base)
    model = RewardModel.new(ModelConfig(path=str(base), device="cpu"), seed=1)
    model.save(tmp_path / "reward", normalizer=REWARD_SCALE, metadata={})
    source = {"kind": "model", "path": str(tmp_path / "reward"), "device": "cpu"}
    config = ppo_config(tmp_path, tiny_llama_folder, reward=[source], steps=1)
    run = run_ppo(config)

    (row,) = run.read_metrics()
    assert row["rollout/dropped"] == 0
    samples = run.read_samples()
    # With ids that mean something else to it, the score of a text would depend on them.
    ids = np.array([5, 6, 7], np.int32)
    requests = [RewardRequest(str(s["prompt"]), str(s["response"]), ids, ids) for s in samples]
    scores = RoleHost(config, ["reward"]).score(requests).scores
    assert scores == pytest.approx([s["score"] for s in samples], abs=1e-5)
    assert isinstance(config.reward[0], ModelSource)
    assert other.get_vocab() != tiny_tokenizer.get_vocab()


# --- Weights & Biases -------------------------------------------------------------------------------------------------


def test_an_offline_wandb_run_holds_every_metric_and_the_table_of_samples(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking = {"wandb": "offline", "project": "tests"}
    run = run_ppo(ppo_config(tmp_path, tiny_llama_folder, tracking=tracking, steps=2))
    records = records_of(run)  # pyright: ignore[reportArgumentType] - reads the path alone
    (started,) = items(records, "run")
    assert started["run_id"] == run.wandb_run_id_path.read_text().strip()
    assert started["config"]["update"]["optimizer"]["learning_rate"] == 1e-2
    history = [entry["item"] for entry in items(records, "history")]
    logged = [row for row in history if "objective/kl" in row]
    assert [row["progress/step"] for row in logged] == [1, 2]
    for row, expected in zip(logged, run.read_metrics(), strict=True):
        assert {key: row[key] for key in expected if key != "step"} == pytest.approx(
            {key: value for key, value in expected.items() if key != "step"}
        )
    tables = [row for row in history if "samples.path" in row]
    (files,) = (run.path / "wandb").glob("offline-run-*/files")
    parts = [json.loads((files / table["samples.path"]).read_text()) for table in tables]
    assert [[row[0] for row in part["data"]] for part in parts] == [[0, 0], [2] * 8]
    assert {"kind", "prompt", "response", "score", "reward/length", "kl", "response_tokens"} < set(parts[0]["columns"])
