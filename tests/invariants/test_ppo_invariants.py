"""What must hold in every PPO run, whatever its numbers: first ratio, determinism, independence of how work is cut."""

import math
from pathlib import Path
from typing import Any

import pytest

from policies.causal import CausalPolicy
from policies.loading import load_backbone
from rlhf.config import PpoConfig
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.run_folder import RunFiles
from rlhf.text_stream import perplexity
from tests.tiny_ppo import (
    STORIES,
    comparable,
    merged,
    metrics_of,
    ppo_settings,
    run_ppo,
    with_ptx,
    write_reward_adapter,
)


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """PPO-ptx against a reward model on the policy's base, with two responses to a prompt."""
    folder = tmp_path_factory.mktemp("invariants")
    reward = write_reward_adapter(folder / "reward", tiny_llama_folder)
    sources = [
        {"kind": "model", "name": "proxy", "path": str(reward), "device": "cpu"},
        {"kind": "length", "maximum_words": 2, "weight": 0.1},
    ]
    rollout = {"prompts_per_step": 3, "responses_per_prompt": 2, "sampling": {"temperature": 0.7}}
    # Small enough that rounding, which Adam and the clips amplify, stays rounding.
    critic = {"optimizer": {"learning_rate": 1e-4}}
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 1e-3}, "critic": critic, "steps": 2}
    return with_ptx(folder, ppo_settings(folder, tiny_llama_folder, reward=sources, rollout=rollout, **changes))


@pytest.fixture(scope="module")
def straight(settings: dict[str, Any]) -> RunFiles:
    return run_ppo(PpoConfig.model_validate(settings))


def variant(settings: dict[str, Any], folder: Path, **changes: Any) -> RunFiles:
    return run_ppo(PpoConfig.model_validate(merged(settings, run_dir=str(folder / "variant"), **changes)))


def assert_same_run(one: RunFiles, other: RunFiles, *, tolerance: float) -> None:
    """The same completions, and the same metrics up to a tolerance; 0 means bitwise."""
    assert one.read_samples()
    said = [[(row["step"], row["prompt_id"], row["response"]) for row in run.read_samples()] for run in (one, other)]
    assert said[0] == said[1]
    rows = [comparable(run.read_metrics()) for run in (one, other)]
    assert [row.keys() for row in rows[0]] == [row.keys() for row in rows[1]]
    if tolerance:
        for expected, actual in zip(*rows, strict=True):
            assert actual == pytest.approx(expected, rel=tolerance, abs=tolerance)
    else:
        assert rows[0] == rows[1]


def test_sampler_and_learner_agree_before_every_update(straight: RunFiles) -> None:
    rows = metrics_of(straight)
    assert len(rows) == 2
    for row in rows:
        assert row["policy/first_step_ratio_error"] < 1e-5
        assert row["sync/canary_max_logprob_diff"] < 1e-4
        assert row["rollout/policy_version"] == row["step"] - 1
        assert row["sync/version"] == row["step"]
    # The policy starts as the reference and leaves it.
    assert abs(rows[0]["objective/kl"]) < 1e-5
    assert abs(rows[1]["objective/kl"]) > 1e-3


def test_the_objective_is_the_score_less_the_penalty_and_the_controller_steers_it(straight: RunFiles) -> None:
    first, second = metrics_of(straight)
    for row in (first, second):
        assert row["objective/non_score_reward"] == pytest.approx(
            -row["objective/kl_coef"] * row["objective/kl"], abs=1e-5
        )
        total = row["objective/scores"] + row["objective/non_score_reward"]
        assert row["objective/rlhf_reward"] == pytest.approx(total, abs=1e-5)
        score = row["reward/proxy"] + 0.1 * row["reward/length"]
        assert row["objective/scores"] == pytest.approx(score, abs=1e-5)
    # Ziegler et al. 2019 with target 6 and horizon 10000: a KL near 0 is more than 20 % below the target.
    assert first["objective/kl_coef"] == 0.05
    assert second["objective/kl_coef"] == pytest.approx(0.05 * (1 - 0.2 * 6 / 10000), rel=1e-9)


def test_the_alignment_tax_is_the_rise_of_the_loss_on_text_since_the_start(
    straight: RunFiles, settings: dict[str, Any]
) -> None:
    (row,) = [row for row in metrics_of(straight) if "eval/alignment_tax" in row]
    config = PpoConfig.model_validate(settings)
    policy = CausalPolicy(load_backbone(config.model), adapter=None, temperature=1.0)
    start = perplexity(policy, STORIES[:2])
    assert row["eval/alignment_tax"] == pytest.approx(math.log(row["eval/pretrain_perplexity"] / start), abs=1e-5)
    assert abs(row["eval/alignment_tax"]) > 1e-5
    assert straight.read_summary()["alignment_tax"] == row["eval/alignment_tax"]


def test_every_metric_of_a_run_is_documented(straight: RunFiles) -> None:
    for row in straight.read_metrics():
        require_documented(row.keys() - {"step"})


def test_the_same_seed_gives_the_same_run_bitwise(straight: RunFiles, settings: dict[str, Any], tmp_path: Path) -> None:
    assert_same_run(straight, variant(settings, tmp_path), tolerance=0)


def test_another_seed_gives_another_run(straight: RunFiles, settings: dict[str, Any], tmp_path: Path) -> None:
    other = variant(settings, tmp_path, seed=4)
    assert [row["response"] for row in other.read_samples()] != [row["response"] for row in straight.read_samples()]


def test_batch_sizes_change_speed_and_memory_only(straight: RunFiles, settings: dict[str, Any], tmp_path: Path) -> None:
    changes = {
        "micro_batch_tokens": 1,
        "rollout": {"engine": {"kind": "hf", "batch_size_responses": 1}},
        "reward": [settings["reward"][0] | {"micro_batch_tokens": 1}, settings["reward"][1]],
    }
    assert_same_run(straight, variant(settings, tmp_path, **changes), tolerance=1e-4)


def test_an_adapter_that_is_not_merged_for_decoding_samples_the_same(
    straight: RunFiles, settings: dict[str, Any], tmp_path: Path
) -> None:
    engine = {"kind": "hf", "merge_adapter": False}
    assert_same_run(straight, variant(settings, tmp_path, rollout={"engine": engine}), tolerance=1e-4)
