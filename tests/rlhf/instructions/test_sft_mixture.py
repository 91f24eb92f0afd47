"""`rlhf sft` on a mixture of tasks, end to end on a tiny model: what is trained, held out, asked and told."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import SftConfig
from rlhf.config_loading.loader import load_config
from rlhf.instructions.templates import read_templates
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers.sft import SftInputs, run

ROOT = Path(__file__).parents[3]
TEMPLATES = [
    {"task": "*", "prompt": "{prompt}\nAnswer:", "completion": " {answer}"},
    {"task": "colour", "prompt": "q: {prompt}\na:", "completion": " {answer}"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def task_rows(task: str, cluster: str, answers: list[str], count: int) -> list[dict[str, Any]]:
    return [{"task": task, "cluster": cluster, "prompt": f"the {task} {number}?",
             "answer": answers[number % len(answers)]} for number in range(count)]  # fmt: skip


def configure(tmp_path: Path, model: Path, /, mixture: dict[str, Any] | None = None, **changes: Any) -> SftConfig:
    rows = [*task_rows("colour", "looks", ["red", "blue"], 12), *task_rows("truth", "logic", ["yes", "no"], 6),
            *task_rows("sum", "numbers", ["2", "3"], 6)]  # fmt: skip
    settings = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(model)},
        "data": {
            "train": write(tmp_path / "train.jsonl", rows),
            "eval": write(tmp_path / "eval.jsonl", rows),
            "mixture": {
                "templates": write(tmp_path / "templates.jsonl", TEMPLATES),
                "held_out_clusters": ["logic", "numbers"],
                "choices": {"truth": ["yes", "no"]},
                "evaluation": {"shots": [0, 1], "max_answer_tokens": 4},
                **(mixture or {}),
            },
        },
        "epochs": 2,
        "examples_per_step": 4,
        "micro_batch_examples": 4,
        "max_tokens": 64,
        "tracking": {"wandb": "off"},
    }
    return SftConfig.model_validate(settings | changes)


def test_training_sees_no_held_out_task_and_the_tasks_are_asked_before_and_after(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path, tiny_llama_folder, optimizer={"learning_rate": 1e-2})
    run(config, resume=False)
    summary: dict[str, Any] = {**RunFiles(config.run_dir).read_summary()}
    assert (summary["mixture"], summary["examples"]) == ({"colour": 12}, 24)
    asked = [(row["task"], row["shots"], row["measure"]) for row in summary["held_out_tasks"]]
    assert asked == [("truth", 0, "sum"), ("truth", 0, "mean"), ("truth", 1, "sum"), ("truth", 1, "mean"),
                     ("sum", 0, "exact"), ("sum", 1, "exact")]  # fmt: skip
    assert {row["questions"] for row in summary["held_out_tasks"]} == {6}
    assert {row["chance"] for row in summary["held_out_tasks"]} == {0.5, None}
    assert all(row["difference"] == pytest.approx(row["after"] - row["before"]) for row in summary["held_out_tasks"])
    assert "Held-out clusters" in RunFiles(config.run_dir).report_path.read_text(encoding="utf-8")
    assert "held-out tasks" in capsys.readouterr().out


def test_the_held_out_loss_is_of_the_tasks_that_train(tmp_path: Path, tiny_llama_folder: Path) -> None:
    inputs = SftInputs(configure(tmp_path, tiny_llama_folder, mixture={"examples": 5}))
    texts = [
        str(inputs.backbone.tokenizer.decode(example.token_ids)) for example in (*inputs.examples, *inputs.held_out)
    ]
    assert (len(inputs.examples), len(inputs.held_out)) == (5, 12)
    assert all("the colour" in text for text in texts)
    assert {text.startswith("<bos>q:") for text in texts} == {True, False}, "both templates are in use"


@pytest.mark.parametrize(("mixture", "message"), [
    ({"held_out_clusters": ["music"]}, "has no row of 'music'"),
    ({"evaluation": {"shots": [9]}}, "more than the 6 rows of task 'truth'"),
])  # fmt: skip
def test_a_mixture_that_cannot_work_is_refused_before_a_run_exists(
    tmp_path: Path, tiny_llama_folder: Path, mixture: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(configure(tmp_path, tiny_llama_folder, mixture=mixture), resume=False)
    assert not (tmp_path / "run").exists()


def test_the_example_configuration_has_ten_templates_that_fit_its_rows() -> None:
    config = load_config(SftConfig, ROOT / "configs" / "sft" / "stories260k-mixture.yaml")
    assert config.data.mixture is not None
    path = ROOT / config.data.mixture.templates
    templates = read_templates([json.loads(line) for line in path.read_text().splitlines()], source=path.name)
    row = {"prompt": "Is ice cold?", "answer": "yes", "rationale": "Ice is frozen water."}
    assert len({template.fill(row)["prompt"] for template in templates}) == 10
    assert all("yes" in template.fill(row)["completion"] for template in templates)
