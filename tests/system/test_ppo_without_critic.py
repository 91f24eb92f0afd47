"""Whole runs with advantages from the other responses to a prompt: they learn, resume bitwise, and build no critic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf import cli
from rlhf.config import PpoConfig
from rlhf.roles import RoleHost
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.placement import ALL_ROLES
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_state import load_latest_checkpoint
from tests.system import scripted_rewards
from tests.tiny_ppo import comparable, merged, metrics_of, ppo_settings, run_ppo, with_ptx, write_yaml

KINDS = ["rloo", "grpo"]


def critic_free(folder: Path, model: Path, kind: str, /, **changes: Any) -> dict[str, Any]:
    settings = ppo_settings(folder, model, algorithm={"advantages": {"kind": kind}}, **changes)
    del settings["critic"]
    return merged(settings, rollout={"responses_per_prompt": 4, "prompts_per_step": 2, **changes.get("rollout", {})})


def scripted(function: str) -> list[dict[str, str]]:
    return [{"kind": "function", "function": f"{scripted_rewards.__name__}:{function}"}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_raises_the_score_it_is_paid_for(tmp_path: Path, tiny_llama_folder: Path, kind: str) -> None:
    settings = critic_free(
        tmp_path,
        tiny_llama_folder,
        kind,
        reward=scripted("vowels"),
        rollout={"prompts_per_step": 16, "sampling": {"max_response_tokens": 4}},
        optimizer={"schedule": "constant"},
        micro_batch_tokens=4096,
        steps=14,
        sample_prompts=0,
        checkpoint={"every_steps": 100},
    )
    changes = {"kl": {"kind": "fixed", "coefficient": 0.0}, "epochs": 2, "minibatches": 1}
    rows = metrics_of(run_ppo(PpoConfig.model_validate(merged(settings, algorithm=changes))))
    scores = np.array([row["objective/scores"] for row in rows])
    assert scores[-3:].mean() > 1.5 * scores[:3].mean()
    assert all(row["policy/first_step_ratio_error"] < 1e-5 for row in rows)
    for row in rows:
        require_documented(row.keys() - {"step"})
        assert not [key for key in row if key.startswith("critic/") or key == "loss/value"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_continues_to_the_same_numbers_bitwise(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings = with_ptx(tmp_path, critic_free(tmp_path, tiny_llama_folder, kind, reward=scripted("score")))
    straight = run_ppo(PpoConfig.model_validate(settings))
    config = PpoConfig.model_validate(merged(settings, run_dir=str(tmp_path / "interrupted")))
    monkeypatch.setattr(scripted_rewards, "calls", 0)
    monkeypatch.setenv("INTERRUPT_AT_CALL", "3")
    with pytest.raises(KeyboardInterrupt):
        run_ppo(config)
    monkeypatch.delenv("INTERRUPT_AT_CALL")
    resumed = run_ppo(config, resume=True)
    assert comparable(resumed.read_metrics()) == comparable(straight.read_metrics())
    assert resumed.read_samples() == straight.read_samples()
    state = load_latest_checkpoint(resumed.checkpoints_path)
    assert state is not None
    assert not [name for name in state.tensors if "critic" in name]


def test_responses_without_a_score_leave_their_group(tmp_path: Path, tiny_llama_folder: Path) -> None:
    # Every second response is scored: of each group of 2 one is left, which has nothing to be compared with.
    changes: dict[str, Any] = {"reward": scripted("some"), "steps": 2}
    settings = critic_free(tmp_path, tiny_llama_folder, "rloo", **changes)
    settings = merged(settings, rollout={"responses_per_prompt": 2}, algorithm={"minibatches": 1})
    rows = metrics_of(run_ppo(PpoConfig.model_validate(settings)))
    assert [row["rollout/dropped"] for row in rows] == [2, 2]
    assert [row["objective/lone_responses"] for row in rows] == [2, 2]
    assert [row["policy/grad_norm"] for row in rows] == [0, 0]


def test_nothing_of_a_critic_is_loaded(tmp_path: Path, tiny_llama_folder: Path) -> None:
    settings = critic_free(tmp_path, tiny_llama_folder, "rloo")
    host = RoleHost(PpoConfig.model_validate(settings), ALL_ROLES)
    assert host._backbone.adapters.names == ("policy",)  # what is in memory is what this test is about
    full = PpoConfig.model_validate(merged(settings, model={"tuning": {"kind": "full"}}))
    owners = {name.split(".")[0] for name in RoleHost(full, ALL_ROLES).state()[0]}
    assert owners == {"policy"}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one response": ({"rollout": {"responses_per_prompt": 1}}, "rollout.responses_per_prompt=1: algorithm.advantages"),
    "settings of a critic": (
        {"critic": {"kind": "head"}},
        "critic sets up a critic, and algorithm.advantages.kind=rloo builds none",
    ),
    "a loss of values": (
        {"algorithm": {"value_coefficient": 0.5}},
        "algorithm.value_coefficient sets up a critic, and algorithm.advantages.kind=rloo builds none",
    ),
    "a key of the other kind": (
        {"algorithm": {"advantages": {"kind": "rloo", "gae_lambda": 0.9}}},
        "algorithm.advantages.gae_lambda: unknown key (received 0.9); only exists with algorithm.advantages.kind=gae",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = BAD[name]
    settings = merged(critic_free(tmp_path, tiny_llama_folder, "rloo"), **change)
    assert cli.main(["ppo", str(write_yaml(tmp_path, settings))]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_resolved_configuration_is_accepted_again(tmp_path: Path, tiny_llama_folder: Path) -> None:
    config = PpoConfig.model_validate(critic_free(tmp_path, tiny_llama_folder, "grpo"))
    assert PpoConfig.model_validate(config.model_dump(mode="json")) == config
    assert not RunFiles(config.run_dir).holds_run()
