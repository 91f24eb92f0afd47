"""`rlhf classify` end to end on a tiny model: it learns, repeats itself, resumes, and refuses what is wrong by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf.classification import stage
from rlhf.classification.stage import PREDICTIONS_FILE, run
from rlhf.cli import main
from rlhf.config import ClassifyConfig
from rlhf.runtime.run_folder import RunFiles

ROWS = [
    {"text": f"the {animal} {verb} {place}", "label": int(verb == "ran")}
    for animal in ("cat", "dog", "bird", "girl")
    for verb in ("sat", "ran")
    for place in ("in the tree", "on the mat", "all day")
]
CLOZE = {
    "kind": "cloze",
    "prompts": {
        "kind": "written",
        "templates": ["{text} is {answer}", "{text} and {answer}"],
        "verbalizer": {"kind": "words", "words": {"0": ["bird"], "1": ["and", "to"]}},
    },
}


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    def build(name: str = "run", *, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> ClassifyConfig:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"train": str(tmp_path / "rows.jsonl"), "eval": str(tmp_path / "rows.jsonl")}
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "model": {"path": str(tiny_llama_folder)},
            "data": data | changes.pop("data", {}),
            "labels": [0, 1],
            "method": CLOZE,
            "epochs": 6,
            "examples_per_step": 8,
            "max_tokens": 64,
            "optimizer": {"learning_rate": 1e-2},
            "checkpoint": {"every_steps": 4},
            "tracking": {"wandb": "off"},
        }
        return ClassifyConfig.model_validate(settings | changes)

    return build


def summary_of(config: ClassifyConfig) -> dict[str, Any]:
    return RunFiles(config.run_dir).read_summary()  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize(
    ("tuning", "method"),
    [
        ({"kind": "full"}, CLOZE),
        ({"kind": "lora", "rank": 4, "alpha": 8}, CLOZE),
        ({"kind": "full"}, {"kind": "head"}),
        ({"kind": "lora", "rank": 4, "alpha": 8}, {"kind": "head"}),
    ],
    ids=["full", "lora", "head on full", "head on lora"],
)
def test_a_classifier_learns_and_leaves_its_folder(
    configure: Any, tuning: Any, method: Any, tiny_llama_folder: Path
) -> None:
    config = configure(model={"path": str(tiny_llama_folder), "tuning": tuning}, method=method)
    run(config, resume=False)
    summary, folder = summary_of(config), Path(config.run_dir)
    assert summary["accuracy"] > 0.9
    assert sum(map(sum, summary["confusion"])) == len(ROWS)
    assert summary["low"] < summary["accuracy"] <= summary["high"]
    expected = 28224 if tuning["kind"] == "full" else 5632
    head = 2 * 32 + 2 if method["kind"] == "head" else 0
    assert summary["trained_parameters"] == pytest.approx(expected + head, rel=0.5)
    assert 0 < summary["trained_share"] <= 1
    predictions = [json.loads(line) for line in (folder / PREDICTIONS_FILE).read_text().splitlines()]
    assert sum(row["label"] == row["predicted"] for row in predictions) == round(summary["accuracy"] * len(ROWS))
    first = (folder / "report.html").read_text()
    assert "Confusion" in first
    assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").read_text() == first
    assert (folder / "model").is_dir()


def test_head_only_training_leaves_the_model_and_counts_the_head_alone(configure: Any) -> None:
    config = configure(method={"kind": "head", "trains": "head"}, optimizer={"learning_rate": 0.1})
    run(config, resume=False)
    assert summary_of(config)["trained_parameters"] == 2 * 32 + 2
    assert not (Path(config.run_dir) / "model").exists()
    assert set(load_file(Path(config.run_dir) / "label_head.safetensors")) == {"weight", "bias"}


def test_without_epochs_nothing_trains(configure: Any) -> None:
    config = configure(epochs=0)
    run(config, resume=False)
    assert summary_of(config)["steps"] == summary_of(config)["trained_parameters"] == 0
    assert not (Path(config.run_dir) / "model").exists()


def test_a_resumed_run_gives_the_numbers_of_a_straight_one(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    straight, broken = configure("straight"), configure("broken")
    run(straight, resume=False)
    original, calls = stage._step, []

    def stops(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(stage, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        run(broken, resume=False)
    monkeypatch.setattr(stage, "_step", original)
    run(broken, resume=True)

    def losses(config: ClassifyConfig) -> list[Any]:
        return [row["loss/train"] for row in RunFiles(config.run_dir).read_metrics()]

    assert losses(broken) == losses(straight)
    same = [(Path(config.run_dir) / PREDICTIONS_FILE).read_text() for config in (straight, broken)]
    assert same[0] == same[1]
    weights = [load_file(Path(config.run_dir) / "model/model.safetensors") for config in (straight, broken)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_shots_are_drawn_by_seed_and_label(configure: Any) -> None:
    drawn = [
        stage.read_labelled(configure(data={"shots_per_class": 3}).data, ["0", "1"], seed=seed).train
        for seed in (0, 0, 1)
    ]
    assert [text.label for text in drawn[0]].count(1) == 3
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": {"shots_per_class": 13}}, "shots_per_class=13: label '0' has 12 rows"),
        ({"rows": [*ROWS, {"text": "the end", "label": 2}]}, "row 24: label is '2'; allowed are ['0', '1']"),
        ({"rows": [{"text": " ", "label": 0}]}, "row 0: text is ' '"),
        ({"max_tokens": 8}, "8 are allowed (max_tokens=8"),
        ({"max_tokens": 999, "rows": [{"text": "the cat " * 40, "label": 0}]}, "64 are allowed (max_tokens=999"),
    ],
)
def test_bad_data_is_refused_by_name_before_the_folder_is_made(configure: Any, changes: Any, problem: str) -> None:
    config = configure(**changes)
    with pytest.raises(ValueError, match="data") as caught:
        run(config, resume=False)
    assert problem in str(caught.value)
    assert not Path(config.run_dir).exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"0": ["bird"]}, "label '1' has none"),
        ({"0": ["bird"], "1": []}, "label '1' has none"),
        ({"0": ["bird"], "1": ["to"], "2": ["and"]}, "'2' is no label"),
    ],
)
def test_labels_and_words_must_match(configure: Any, words: Any, problem: str) -> None:
    prompts = {"kind": "written", "templates": ["{text} {answer}"], "verbalizer": {"kind": "words", "words": words}}
    with pytest.raises(ValueError, match="words") as caught:
        configure(method={"kind": "cloze", "prompts": prompts})
    assert problem in str(caught.value)


def test_a_best_step_is_not_asked_for_where_only_the_last_is_measured(configure: Any) -> None:
    with pytest.raises(ValueError, match=r"keep_best\.metric=eval/accuracy: held-out texts are labelled once"):
        configure(checkpoint={"keep_best": {"metric": "eval/accuracy", "direction": "higher"}})


def test_an_output_layer_that_no_label_reads_is_not_trained(configure: Any, tiny_llama_folder: Path) -> None:
    model = {"path": str(tiny_llama_folder), "tuning": {"kind": "head"}}
    with pytest.raises(ValueError, match=r"would train without effect; set method\.trains=head"):
        configure(model=model, method={"kind": "head"})
    assert configure(model=model, method={"kind": "head", "trains": "head"})


def test_the_command_line_answers_a_split_word_with_one_line(
    configure: Any, tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure()
    (tmp_path / "config.yaml").write_text(
        f"""
run_dir: {tmp_path / "run"}
model: {{path: {tiny_llama_folder}}}
data: {{train: {tmp_path / "rows.jsonl"}, eval: {tmp_path / "rows.jsonl"}}}
labels: [0, 1]
method:
  kind: cloze
  prompts:
    kind: written
    templates: ["{{text}} is {{answer}}"]
    verbalizer: {{kind: words, words: {{0: [bird], 1: [unhappy]}}}}
"""
    )
    assert main(["classify", str(tmp_path / "config.yaml")]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "'unhappy' of label '1'" in line
    assert "single token" in line
