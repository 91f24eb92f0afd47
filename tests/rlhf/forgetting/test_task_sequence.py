"""`rlhf forgetting`: what each fine-tuning begins with, which rows are old, the matrices, and what resuming keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import ForgettingConfig, SftConfig
from rlhf.forgetting import task_sequence
from rlhf.forgetting.matrices import Known, way_row
from rlhf.forgetting.task_sequence import KNOWN_FILE, TaskSequence, run
from rlhf.reports.command import run as report
from rlhf.reports.config import ReportConfig
from rlhf.runtime.run_folder import RunFiles

LORA = {"kind": "lora", "rank": 4, "alpha": 8}
TEXT = [{"text": "the cat sat on the mat"}]


def rows_of(word: str) -> list[dict[str, str]]:
    return [
        {"prompt": f"{word} is the {animal}?", "completion": " on the mat", "answer": "on the mat"}
        for animal in ("cat", "dog", "bird")
    ]


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    def source(name: str, rows: list[dict[str, str]]) -> str:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def build(**changes: Any) -> ForgettingConfig:
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / "forgetting"),
            "sft": {
                "model": {"path": str(tiny_llama_folder)},
                "examples_per_step": 3,
                "micro_batch_examples": 3,
                "max_tokens": 40,
                "optimizer": {"learning_rate": 1e-2},
            },
            "tasks": [
                {"name": name, "train": source(name, rows_of(name)), "eval": source(name, rows_of(name))}
                for name in ("where", "who")
            ],
            "ways": [{"name": "full"}],
            "data": {"pretrain_eval": source("text", TEXT)},
            "questions": {"template": "{question}", "max_answer_tokens": 4},
            "tracking": {"wandb": "off"},
        }
        return ForgettingConfig.model_validate(settings | changes)

    return build


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Known]], list[SftConfig]]:
    """Stands for training and asking: `known` holds what is known by the model in a folder, by its last three names."""

    def script(known: dict[str, Known]) -> list[SftConfig]:
        trained: list[SftConfig] = []

        def train(config: SftConfig, *, resume: bool) -> None:
            assert not resume
            trained.append(config)
            files = RunFiles(config.run_dir)
            files.path.mkdir(parents=True)
            files.config_path.write_text(json.dumps(config.model_dump(mode="json")))
            (files.path / "summary.json").write_text('{"steps": 1}')

        def ask(_sequence: Any, _model: str, folder: Path, tasks: list[Any]) -> None:
            found = known["/".join(folder.parts[-3:]) if folder.name[0].isdigit() else "start"]
            scores = {task.name: found.scores[task.name] for task in tasks}
            (folder / KNOWN_FILE).write_text(json.dumps({"scores": scores, "perplexity": found.perplexity}))

        monkeypatch.setattr(task_sequence.sft, "run", train)
        monkeypatch.setattr(TaskSequence, "_ask", ask)
        return trained

    return script


def known(where: float, who: float, perplexity: float) -> Known:
    return Known({"where": where, "who": who}, perplexity)


KNOWN = {
    "start": known(0.1, 0.2, 4.0),
    "full/seed-0/1-where": known(0.8, 0.3, 6.0),
    "full/seed-0/2-who": known(0.5, 0.9, 10.0),
    "full/seed-1/1-where": known(0.6, 0.3, 6.0),
    "full/seed-1/2-who": known(0.6, 0.7, 8.0),
    "apart/seed-0/1-where": known(0.7, 0.0, 9.0),
    "apart/seed-0/2-who": known(0.0, 0.6, 9.0),
    "replay/seed-0/1-where": known(0.8, 0.3, 6.0),
    "replay/seed-0/2-who": known(0.8, 0.6, 7.0),
}
APART = {"name": "apart", "tuning": LORA, "adapters": "per_task"}
REPLAY = {"name": "replay", "retention": {"kind": "replay"}}


def test_numbers_of_a_way_are_means_over_seeds() -> None:
    seeds = [[KNOWN[f"full/seed-{seed}/{task}"] for task in ("1-where", "2-who")] for seed in (0, 1)]
    row = way_row("full", KNOWN["start"], seeds, ["where", "who"], seconds=3.0)
    assert [pytest.approx(scores) for scores in row.matrix] == [[0.7, 0.3], [0.55, 0.8]]
    assert (row.average, row.forgetting) == (pytest.approx((0.7 + 0.65) / 2), pytest.approx(0.15))
    assert (row.averages, row.forgettings) == (pytest.approx([0.7, 0.65]), pytest.approx([0.3, 0.0]))
    assert (row.perplexities, row.perplexity_drift) == (pytest.approx([6.0, 9.0]), pytest.approx(1.25))


def test_without_text_there_is_no_drift() -> None:
    moments = [Known(known.scores, None) for known in (KNOWN["full/seed-0/1-where"], KNOWN["full/seed-0/2-who"])]
    row = way_row("full", Known(KNOWN["start"].scores, None), [moments], ["where", "who"], seconds=1.0)
    assert (row.perplexities, row.perplexity_drift) == ([], None)


def test_each_task_continues_the_model_of_the_one_before_and_replays_what_came_before(
    configure: Any, scripted: Any
) -> None:
    trained = scripted(KNOWN)
    config = configure(ways=[REPLAY])
    run(config, resume=False)
    first, second = trained
    assert (first.model.path, first.retention.kind) == (config.sft.model.path, "none")
    assert second.model.path == str(Path(first.run_dir) / "model")
    old = [json.loads(line) for line in Path(second.retention.data).read_text().splitlines()]
    assert old == rows_of("where")


def test_pretraining_text_is_old_from_the_first_task_on(configure: Any, scripted: Any) -> None:
    trained = scripted(KNOWN)
    config = configure(ways=[REPLAY])
    text = config.data.pretrain_eval
    run(configure(ways=[REPLAY], data={"pretrain": text, "pretrain_eval": text}), resume=False)
    first, second = trained
    assert first.retention.data == text
    old = [json.loads(line) for line in Path(second.retention.data).read_text().splitlines()]
    assert old == [*TEXT, *rows_of("where")]


def test_adapters_of_their_own_keep_what_was_learned_and_the_text(configure: Any, scripted: Any) -> None:
    trained = scripted(KNOWN)
    config = configure(ways=[APART])
    run(config, resume=False)
    assert [stage.model.path for stage in trained] == [config.sft.model.path] * 2
    row: Any = RunFiles(config.run_dir).read_summary()["task_sequence"]["apart"]  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]
    assert [pytest.approx(scores) for scores in row["matrix"]] == [[0.7, 0.2], [0.7, 0.6]]
    assert (row["forgetting"], row["perplexity_drift"]) == (0.0, 0.0)


def test_a_resumed_comparison_keeps_what_has_finished_and_may_get_another_way_or_seed(
    configure: Any, scripted: Any
) -> None:
    trained = scripted(KNOWN)
    run(configure(), resume=False)
    run(configure(seeds=[0, 1]), resume=True)
    assert [stage.seed for stage in trained] == [0, 0, 1, 1]
    config = configure(ways=[{"name": "full"}, REPLAY])
    run(config, resume=True)
    assert len(trained) == 6
    table: Any = RunFiles(config.run_dir).read_summary()["task_sequence"]
    assert (list(table), table["full"]["forgetting"]) == (["full", "replay"], pytest.approx(0.3))
    report(ReportConfig(runs=(config.run_dir,)), resume=False)
    assert "<svg" in RunFiles(config.run_dir).report_path.read_text()


def test_a_way_that_has_changed_is_not_taken_over(configure: Any, scripted: Any) -> None:
    scripted(KNOWN)
    run(configure(), resume=False)
    with pytest.raises(ValueError, match=r"full/seed-0/1-where.*learning_rate"):
        run(configure(ways=[{"name": "full", "learning_rate": 0.5}]), resume=True)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ways": [{"name": "full"}, {"name": "full"}]}, "not all different"),
        ({"seeds": [1, 1]}, "not all different"),
        ({"ways": [{"name": "apart", "adapters": "per_task"}]}, "has adapters=per_task and tuning.kind=full"),
        ({"questions": {"shots": [0, 2]}}, "a task has one score"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(configure: Any, changes: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r"ways|seeds|questions") as caught:
        configure(**changes)
    assert problem in str(caught.value)


def test_a_row_that_is_no_question_is_named_before_anything_is_trained(configure: Any, tmp_path: Path) -> None:
    config = configure()
    (tmp_path / "who.jsonl").write_text('{"prompt": "who?"}\n')
    with pytest.raises(ValueError, match=r"tasks.1.eval=.*who.jsonl, row 0: answer is None"):
        run(config, resume=False)
    assert not Path(config.run_dir).exists()


def test_real_models_learn_two_tasks_and_are_asked_after_each(configure: Any) -> None:
    config = configure(ways=[{"name": "ewc", "retention": {"kind": "ewc", "examples": 2}}])
    run(config, resume=False)
    summary: Any = RunFiles(config.run_dir).read_summary()
    row = summary["task_sequence"]["ewc"]
    assert [len(scores) for scores in row["matrix"]] == [2, 2]
    assert all(0 <= score <= 1 for scores in row["matrix"] for score in scores)
    assert len(set(row["perplexities"])) == 2
    assert row["perplexity_drift"] == pytest.approx(row["perplexities"][-1] / summary["start"]["perplexity"] - 1)
