"""lm-evaluation-harness on a local task: right or wrong for each question, the same as our own measure says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from policies.config import ModelConfig, PTuningV2
from policies.loading import load_backbone, prepare_policy
from rlhf.evaluation import harness
from rlhf.evaluation.config import HarnessConfig, TasksConfig
from rlhf.evaluation.harness import MissingHarnessError, measure_harness, question_scores
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.task_scores import measure_tasks, task_changes
from rlhf.evaluation.tasks import read_task

pytest.importorskip("lm_eval", reason="needs the extra `harness`")

ROWS = [
    {"question": question, "choices": choices, "answer": answer}
    for question, choices, answer in (
        ("the small cat", ["sat on the mat", "ran"], 0),
        ("a dog", ["in the tree", "ran over the hill"], 1),
        ("where is the bird", ["the tree", "a girl sang all day"], 0),
        ("she", ["sang", "the the the"], 1),
        ("once", ["there was a girl", "rain"], 1),
    )
]
TASK = {
    "task": "cats",
    "dataset_path": "json",
    "test_split": "train",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}?",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task definition and its data."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "cats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    definition = TASK | {"dataset_kwargs": {"data_files": str(data)}}
    (folder / "cats.yaml").write_text(yaml.safe_dump(definition), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def model(tiny_llama_folder: Path) -> LoadedModel:
    return LoadedModel(ModelConfig(path=str(tiny_llama_folder), device="cpu"))


@pytest.mark.slow
def test_the_harness_and_our_own_measure_agree_on_every_question(model: LoadedModel, tasks: Path) -> None:
    (found,) = measure_harness(model, HarnessConfig(tasks=("cats",), include_path=str(tasks)), seed=0)
    (own,) = measure_tasks(model, [read_task(ROWS, source="cats")], TasksConfig(template="{question}?"), seed=0)
    assert (found.task, found.shots, set(found.correct)) == ("cats", 0, {"acc", "acc_norm"})
    assert found.correct["acc"].tolist() == own.correct["sum"].tolist()
    assert 0 < found.correct["acc"].mean() < 1, "the rows should tell right from wrong"
    (first, *_) = task_changes([found], [found], seed=0)
    assert (first.questions, first.difference.value) == (5, 0.0)


@pytest.mark.slow
def test_shots_and_rows_are_those_asked_for(model: LoadedModel, tasks: Path) -> None:
    config = HarnessConfig(tasks=("cats",), include_path=str(tasks), shots=1, rows=3)
    (found,) = measure_harness(model, config, seed=0)
    assert found.shots == 1
    assert len(found.correct["acc"]) == 3


@pytest.mark.slow
def test_an_unknown_task_is_named(model: LoadedModel, tasks: Path) -> None:
    with pytest.raises(ValueError, match=r"harness\.tasks: dogs is no task of lm-evaluation-harness nor of"):
        measure_harness(model, HarnessConfig(tasks=("cats", "dogs"), include_path=str(tasks)), seed=0)


def test_scores_stand_in_the_order_of_the_questions_and_those_of_whole_tasks_are_left_out() -> None:
    samples: list[dict[str, Any]] = [
        {"doc_id": index, "filter": "none", "metrics": ["acc", "bleu"], "acc": value, "bleu": ("a", "b")}
        for index, value in ((2, 0.0), (0, 1.0), (1, 0.5))
    ]
    assert {name: values.tolist() for name, values in question_scores(samples).items()} == {"acc": [1.0, 0.5, 0.0]}
    twice = [sample | {"filter": name} for name in ("strict", "flexible") for sample in samples]
    assert set(question_scores(twice)) == {"acc, strict", "acc, flexible"}


@pytest.mark.slow
def test_the_adapter_that_is_the_policy_answers(tiny_llama_folder: Path, tmp_path: Path, model: LoadedModel) -> None:
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    get_peft_model(base, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")).save_pretrained(str(tmp_path))
    model.tokenizer.save_pretrained(str(tmp_path))
    adapted = LoadedModel(ModelConfig(path=str(tmp_path), device="cpu"))
    ids = model.tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    with adapted.transformers_model() as tuned, model.transformers_model() as plain:
        assert (tuned(ids).logits - plain(ids).logits).abs().max() > 1e-3


@pytest.mark.slow
def test_written_answers_behind_virtual_tokens_are_refused_and_given_ones_are_scored(
    tiny_llama_folder: Path, tasks: Path
) -> None:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    adapted = LoadedModel.of(backbone, prepare_policy(backbone, PTuningV2(virtual_tokens=3), seed=0))
    written = {key: value for key, value in TASK.items() if key != "doc_to_choice"}
    written |= {
        "task": "written",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["x"], "max_gen_toks": 2},
        "metric_list": [{"metric": "exact_match"}],
        "dataset_kwargs": {"data_files": str(tasks / "cats.jsonl")},
    }
    folder = tasks / "generated"
    folder.mkdir()
    (folder / "written.yaml").write_text(yaml.safe_dump(written), encoding="utf-8")
    (given,) = measure_harness(adapted, HarnessConfig(tasks=("cats",), include_path=str(tasks)), seed=0)
    assert len(given.correct["acc"]) == len(ROWS)
    with pytest.raises(ValueError, match="puts virtual tokens before every row"):
        measure_harness(adapted, HarnessConfig(tasks=("written",), include_path=str(folder)), seed=0)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(harness, "import_module", absent)
    with pytest.raises(MissingHarnessError, match=r"pip install 'rlhf\[harness\]'"):
        harness.require_harness()
