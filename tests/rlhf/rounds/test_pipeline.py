"""Whole rounds on a tiny random model: who made what, where it stops for people, and what it refuses."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from rlhf.config import RoundsConfig
from rlhf.rounds.pipeline import Rounds, run
from rlhf.runtime.json_lines import read_objects, write_objects
from rlhf.runtime.run_folder import RunFiles
from tests.tiny_ppo import PROMPTS, merged, write_rows, write_yaml


def count_letters(prompts: list[str], responses: list[str]) -> list[float]:
    return [float(len(response)) for response in responses[: len(prompts)]]


def settings(folder: Path, model: Path, /, **changes: Any) -> dict[str, Any]:
    letters = {"kind": "function", "name": "letters", "function": f"{__name__}:count_letters"}
    sampling = {"max_response_tokens": 4}
    return merged(
        {
            "run_dir": str(folder / "run"),
            "model": {"path": str(model), "device": "cpu", "tuning": {"kind": "lora", "rank": 2, "alpha": 4}},
            "data": {"train": write_rows(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])},
            "rounds": 2,
            "collect": {"prompts": 6, "held_out": 2, "sampling": sampling, "max_prompt_tokens": 16},
            "ranker": {"kind": "score", "reward": [letters]},
            "reward": {"comparisons_per_step": 4, "max_tokens": 32, "optimizer": {"learning_rate": 0.01}},
            "ppo": {
                "rollout": {"prompts_per_step": 4, "max_prompt_tokens": 16, "sampling": sampling},
                "algorithm": {"minibatches": 1, "epochs": 1},
                "optimizer": {"learning_rate": 0.01},
                "steps": 1,
                "sample_prompts": 0,
                "placement": {"kind": "in_process"},
            },
            "tracking": {"wandb": "off"},
        },
        **changes,
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """Two rounds, ranked by a function that also judges at the end."""
    folder = tmp_path_factory.mktemp("rounds")
    held_out = write_rows(folder / "held-out.jsonl", [{"prompt": text} for text in PROMPTS[:3]])
    judge = {"kind": "function", "name": "letters", "function": f"{__name__}:count_letters"}
    config = RoundsConfig.model_validate(settings(folder, tiny_llama_folder, data={"eval": held_out}, judges=[judge]))
    run(config, resume=False)
    return RunFiles(config.run_dir)


def test_each_round_starts_from_the_policy_of_the_one_before(finished: RunFiles, tiny_llama_folder: Path) -> None:
    starts: list[Any] = [RunFiles(finished.path / f"round-{number}/ppo").read_config()["model"] for number in (1, 2)]
    assert [start["path"] for start in starts] == [str(tiny_llama_folder), str(finished.path / "round-1/ppo/model")]
    bases: list[Any] = [RunFiles(finished.path / f"round-{number}/reward").read_config()["model"] for number in (1, 2)]
    assert {base["path"] for base in bases} == {str(tiny_llama_folder)}


def test_the_second_reward_model_learns_from_the_comparisons_of_both_rounds(finished: RunFiles) -> None:
    first, second = (read_objects(finished.path / f"round-{number}/comparisons.jsonl") for number in (1, 2))
    assert second[: len(first)] == first
    assert [row["source"] for row in second] == ["round-1"] * len(first) + ["round-2"] * (len(second) - len(first))
    # Six prompts a round of eight: the second round begins at the seventh.
    prompts = [row["prompt"] for row in read_objects(finished.path / "round-2/answers.jsonl")]
    assert prompts[:2] == list(PROMPTS[6:8])


def test_provenance_leads_from_the_last_policy_to_the_first_by_checksum(finished: RunFiles) -> None:
    records: list[dict[str, Any]] = json.loads((finished.path / "provenance.json").read_text(encoding="utf-8"))
    assert [(one["round"], one["step"]) for one in records] == [
        (number, step) for number in (1, 2) for step in ("collect", "rank", "reward", "ppo")
    ]
    by_step = {(one["round"], one["step"]): one for one in records}
    # The policy that gave the second round's answers is the one that the first has left.
    assert by_step[2, "collect"]["inputs"][0] == by_step[1, "ppo"]["output"]
    # The comparisons that trained a reward model are the file as it lies there.
    (trained_on,) = [item for item in by_step[2, "reward"]["inputs"] if item["name"] == "round-2-comparisons.jsonl"]
    assert trained_on["checksums"] == {"comparisons.jsonl": sha256(finished.path / "round-2/comparisons.jsonl")}
    assert trained_on == by_step[2, "rank"]["output"]
    assert by_step[2, "reward"]["output"] in by_step[2, "ppo"]["inputs"]
    assert by_step[1, "rank"]["ranker"]["reward"][0]["name"] == "letters"


def test_the_rounds_are_compared_at_the_end(finished: RunFiles) -> None:
    rounds: Any = finished.read_summary()["rounds"]
    evaluated: Any = RunFiles(finished.path / "eval").read_summary()["models"]
    assert list(rounds) == ["round-1", "round-2"]
    assert rounds["round-2"]["win_rate"] == evaluated["candidate"]["win_rate"]
    (first,) = [one for name, one in evaluated.items() if name not in ("candidate", "baseline")]
    assert rounds["round-1"]["win_rate"] == first["win_rate"]
    html = finished.report_path.read_text(encoding="utf-8")
    assert 'href="round-2/ppo/report.html"' in html
    assert "another round" in html


def test_what_was_said_of_a_held_out_prompt_in_an_earlier_round_trains_nothing(tmp_path: Path) -> None:
    def ranked(prompt: str, number: int) -> dict[str, Any]:
        return {"prompt": prompt, "responses": ["a", "b"], "ranking": [[0], [1]], "source": f"round-{number}"}

    config = RoundsConfig.model_validate(settings(tmp_path, Path("no-model"), collect={"held_out": 1}))
    rounds = Rounds(config, tmp_path / "run")
    for number, prompts in ((1, "xyz"), (2, "yxz")):
        folder = tmp_path / f"run/round-{number}"
        folder.mkdir(parents=True)
        for name in ("answers", "rankings"):
            write_objects(folder / f"{name}.jsonl", [ranked(prompt, number) for prompt in prompts])
        rounds._split(number)
    assert read_objects(tmp_path / "run/round-2/comparisons-eval.jsonl") == [ranked("y", 2)]
    kept = read_objects(tmp_path / "run/round-2/comparisons.jsonl")
    assert kept == [ranked("z", 1), ranked("x", 2), ranked("z", 2)]


def test_the_columns_of_a_conversations_row_reach_who_ranks(tmp_path: Path, tiny_llama_folder: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": text}], "topic": text[-3:]} for text in PROMPTS[:6]]
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}?"
    data = {"train": write_rows(tmp_path / "talks.jsonl", rows)}
    changes = {"data": data, "model": {"chat_template": template}}
    rounds = Rounds(RoundsConfig.model_validate(settings(tmp_path, tiny_llama_folder, **changes)), tmp_path / "run")
    rounds._collect(1)
    answers: list[Any] = read_objects(tmp_path / "run/round-1/answers.jsonl")
    assert answers
    assert all(row["fields"] == {"topic": row["prompt"][-4:-1]} for row in answers)


def test_rounds_stop_for_people_and_go_on_with_their_file(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_yaml(tmp_path, settings(tmp_path, tiny_llama_folder, ranker={"kind": "files"}, rounds=1))
    files = RunFiles(tmp_path / "run")
    folder = files.path / "round-1"
    assert main(["rounds", str(config)]) == 0
    assert f"write {folder / 'rankings.jsonl'}" in capsys.readouterr().out
    assert not files.summary_path.exists()

    answers: list[Any] = read_objects(folder / "answers.jsonl")
    write_objects(folder / "rankings.jsonl", [answers[0] | {"ranking": [[0]]}])
    assert main(["rounds", str(config), "--resume"]) == 2
    assert "name each of the" in capsys.readouterr().err

    ranked = [row | {"ranking": [[place] for place in range(len(row["responses"]))][::-1]} for row in answers]
    write_objects(folder / "rankings.jsonl", ranked)
    assert main(["rounds", str(config), "--resume"]) == 0
    assert files.read_summary()["rounds"]
    assert read_objects(folder / "comparisons.jsonl") == ranked[2:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": {"epoch": 2}}, "reward: epoch: unknown key"),
        ({"ppo": {"steps": 0}}, "ppo: steps"),
        ({"ppo": {"seed": 3}}, "ppo.seed is decided by rounds"),
        ({"collect": {"held_out": 6}}, "held_out=6 leaves none of prompts=6"),
        ({"data": {"eval": "rows.jsonl"}}, "give both or none"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    config = write_yaml(tmp_path, settings(tmp_path, tiny_llama_folder, **changes))
    assert main(["rounds", str(config)]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert not (tmp_path / "run").exists()
