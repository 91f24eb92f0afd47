"""What `rlhf plan` and `--dry-run` say about a run: placement and memory."""

from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rlhf import cli
from rlhf.planning import command as plan
from rlhf.planning.command import describe, describe_placement, memory_table, plan_memory
from rlhf.planning.memory_plan import MIB
from rlhf.runtime.placement import Resources
from tests.tiny_ppo import ppo_config, ppo_settings

SPLIT = {"kind": "split", "rollout": {"workers": 2, "cpus": 0.5}}


@pytest.fixture(autouse=True)
def _two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "local_resources", lambda: Resources(2.0, 0.0))


def test_in_process_needs_no_actor(tmp_path: Path) -> None:
    lines = describe_placement(ppo_config(tmp_path, "model"))
    assert lines == [
        "placement: this process hosts rollout, reward, reference, learner",
        "each step: 4 responses, then 2 epochs over them",
    ]


def test_colocated_is_one_actor(tmp_path: Path) -> None:
    lines = describe_placement(ppo_config(tmp_path, "model", placement={"kind": "colocated"}))
    assert lines[0] == "placement: colocated on a local Ray cluster"
    assert lines[1] == "  actor colocated: rollout, reward, reference, learner; reserves 2 CPUs and 0 GPUs"


def test_split_names_every_actor_with_its_role_and_share(tmp_path: Path) -> None:
    rollout = {"prompts_per_step": 3, "responses_per_prompt": 4}
    lines = describe_placement(ppo_config(tmp_path, "model", placement=SPLIT, rollout=rollout))
    assert [line.split(";")[0].strip() for line in lines[1:-1]] == [
        "actor rollout-0: rollout",
        "actor rollout-1: rollout",
        "actor reward-0: reward",
        "actor reference-0: reference",
        "actor learner: learner",
    ]
    assert lines[1].endswith("reserves 0.5 CPUs and 0 GPUs")
    assert lines[-1] == "each step: 12 responses, then 2 epochs over them"


def test_running_ahead_is_told(tmp_path: Path) -> None:
    changes = {"rollout": {"max_policy_age": 2}, "algorithm": {"importance_cap": 2.0}}
    lines = describe_placement(ppo_config(tmp_path, "model", placement=SPLIT, **changes))
    assert lines[-1] == "each step: 4 responses, then 2 epochs over them; rollouts run ahead, max_policy_age=2"


def test_what_this_machine_can_never_hold_is_refused(tmp_path: Path) -> None:
    placement = {"kind": "split", "learner": {"cpus": 8}}
    with pytest.raises(ValueError, match=r"^placement: 4 actors ask for 8\.75 CPUs .* the cluster has 2 CPUs"):
        describe_placement(ppo_config(tmp_path, "model", placement=placement))


def test_a_cluster_elsewhere_is_not_judged_by_this_machine(tmp_path: Path) -> None:
    placement = {"kind": "split", "learner": {"cpus": 8}, "address": "ray://10.0.0.1:10001"}
    lines = describe_placement(ppo_config(tmp_path, "model", placement=placement))
    assert lines[0] == "placement: split on the Ray cluster at ray://10.0.0.1:10001"


def test_a_dry_run_prints_the_placement_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ppo_settings(tmp_path, "no/such/model", placement=SPLIT)
    path = tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert cli.main(["ppo", str(path), "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "#   actor rollout-1: rollout; reserves 0.5 CPUs and 0 GPUs" in output
    assert not (tmp_path / "run").exists()
    assert "# memory: not known: model.path='no/such/model'" in output


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_tells_the_memory_of_every_process(tmp_path: Path, tiny_llama_folder: Path) -> None:
    lines = describe(ppo_config(tmp_path, tiny_llama_folder, placement=SPLIT))
    text = "\n".join(lines[lines.index(f"memory: an estimate, {plan._ASSUMPTION}") :])
    for name in ("driver", "rollout-0 and 1 more, each", "reward-0", "reference-0", "learner"):
        assert f"  {name}, main memory beside that: libraries" in text
    assert "  learner on cpu: " in text
    assert "MiB at most, while in update" in text


def test_all_roles_in_one_process_are_one_column(tmp_path: Path, tiny_llama_folder: Path) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder)
    (actor,) = plan_memory(config)
    assert set(actor.phases) == {"rollout", "scoring", "update"}
    output = StringIO()
    Console(file=output, width=80).print(memory_table([actor]))
    rows = [line for line in output.getvalue().splitlines() if line.startswith("│")]
    assert any("always: base weights" in row for row in rows)
    assert any("update: activations" in row for row in rows)
    peak = f"{actor.peak / MIB:,.1f}"
    assert any("most at the same time" in row and peak in row for row in rows)


def test_a_gpu_holds_the_models_of_the_actors_that_reserve_it(tmp_path: Path, tiny_llama_folder: Path) -> None:
    placement = {**SPLIT, "learner": {"gpus": 1}}
    model = {"device": "auto"}
    actors = plan_memory(ppo_config(tmp_path, tiny_llama_folder, placement=placement, model=model))
    assert {actor.name.split("-")[0]: actor.device for actor in actors} == {
        "driver": "cpu",
        "rollout": "cpu",
        "reward": "cpu",
        "reference": "cpu",
        "learner": "cuda",
    }


def test_the_command_prints_placement_and_table(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump(ppo_settings(tmp_path, tiny_llama_folder)), encoding="utf-8")
    assert cli.main(["plan", str(path), "activation_checkpointing=true"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("placement: this process hosts rollout, reward, reference, learner\n")
    assert "always: base weights" in output
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump(ppo_settings(tmp_path, "no/such/model")), encoding="utf-8")
    assert cli.main(["plan", str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: model.path='no/such/model'")
