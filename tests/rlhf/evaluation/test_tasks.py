"""Task rows, shots, and how a model does on them: by a plain forward pass of transformers on the same texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.config import ModelConfig
from rlhf.evaluation.config import TasksConfig
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.task_scores import TaskOutcome, is_exact, measure_tasks, task_changes
from rlhf.evaluation.tasks import contexts, read_task, task_name

CHOICES = [
    {"question": "where is the cat", "choices": ["on the mat", "in the green tree by the hill"], "answer": 0},
    {"question": "who ran", "choices": ["a girl", "a dog", "rain"], "answer": "a dog"},
    {"question": "what sang", "choices": ["she", "the red ball"], "answer": 0},
]
FREE = [{"prompt": "the small", "answer": "cat"}, {"prompt": "two and two", "answer": 4}]


def test_rows_of_both_kinds_are_read():
    task = read_task(CHOICES, source="data/pets.test.jsonl.gz[:3]")
    assert (task.name, task.kind) == ("pets", "multiple_choice")
    assert [row.answer for row in task.rows] == ["on the mat", "a dog", "she"]
    free = read_task(FREE, source="quickstart/free")
    assert (free.name, free.kind, free.rows[1].answer) == ("free", "exact_match", "4")
    assert task_name("owner/name:config:split") == "name_config_split"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": ["a"], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", "a"], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", 1], "answer": 0}, "two or more different texts"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "answer is 2; give the index"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "answer is True; give the index"),
        ({"choices": ["a", "b"], "answer": "a"}, "question is None"),
        ({"prompt": "p"}, "answer is None"),
        ({"prompt": "p", "answer": "a"}, "rows before are multiple_choice"),
    ],
)
def test_a_bad_row_is_named_or_skipped(row, message):
    with pytest.raises(ValueError, match=rf"^data\.tasks=t\.jsonl, row 3: .*{message}"):
        read_task([*CHOICES, row], source="t.jsonl")
    task = read_task([*CHOICES, row], source="t.jsonl", on_bad_row="skip")
    assert (len(task.rows), task.skipped) == (3, 1)


def test_shots_are_other_rows_solved_and_the_same_each_time():
    task, config = read_task(CHOICES, source="t"), TasksConfig(separator="|", template="{question}?")
    assert contexts(task, 0, config, seed=0)[1] == "who ran?"
    one = contexts(task, 1, config, seed=0)
    assert one == contexts(task, 1, config, seed=0)
    solved = {"where is the cat? on the mat", "who ran? a dog", "what sang? she"}
    for index, (text, row) in enumerate(zip(one, task.rows, strict=True)):
        shot, _, question = text.partition("|")
        assert question == f"{row.question}?"
        assert shot in solved
        assert row.answer not in shot, index
    assert len({tuple(contexts(task, 1, config, seed=seed)) for seed in range(10)}) > 1
    # The first rows are the same questions with the same shots.
    assert contexts(task, 1, TasksConfig(separator="|", template="{question}?", rows=2), seed=0) == one[:2]
    with pytest.raises(ValueError, match=r"^tasks\.shots: 3 solved rows"):
        contexts(task, 3, config, seed=0)


@pytest.fixture(scope="module")
def model(tiny_llama_folder: Path) -> LoadedModel:
    return LoadedModel(ModelConfig(path=str(tiny_llama_folder), device="cpu"))


def test_choices_are_ranked_by_summed_and_by_mean_log_prob(model: LoadedModel, tiny_llama_folder: Path):
    task, config = read_task(CHOICES, source="t"), TasksConfig(shots=(0, 1), separator=" ", template="{question}?")
    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_folder)

    def logprobs(context: str, choice: str) -> torch.Tensor:
        prompt = tokenizer(context)["input_ids"]
        answer = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            found = torch.log_softmax(reference(torch.tensor([prompt + answer])).logits[0, :-1], dim=-1)
        return found[torch.arange(len(prompt) - 1, len(prompt) + len(answer) - 1), answer]

    outcomes = measure_tasks(model, [task], config, seed=3)

    assert [outcome.shots for outcome in outcomes] == [0, 1]
    best: dict[str, list[str]] = {"sum": [], "mean": []}
    for outcome in outcomes:
        texts = contexts(task, outcome.shots, config, seed=3)
        for measure in ("sum", "mean"):
            chosen = [
                max(row.choices, key=lambda choice: float(getattr(logprobs(text, choice), measure)()))
                for text, row in zip(texts, task.rows, strict=True)
            ]
            expected = [float(choice == row.answer) for choice, row in zip(chosen, task.rows, strict=True)]
            assert outcome.correct[measure].tolist() == expected
            best[measure] += chosen
    assert best["sum"] != best["mean"], "the rows should tell the two measures apart"


def test_free_answers_are_the_most_likely_ones_up_to_the_end_of_their_line(model: LoadedModel, tiny_llama_folder: Path):
    config = TasksConfig(template="{question}", max_answer_tokens=3)
    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_llama_folder)
    ids = tokenizer("the small", return_tensors="pt")
    greedy = reference.generate(**ids, do_sample=False, max_new_tokens=3)[0, ids["input_ids"].shape[1] :]
    right = tokenizer.decode(greedy, skip_special_tokens=True).partition("\n")[0]
    assert right.strip()
    rows = [{"prompt": "the small", "answer": right.upper() + "."}, {"prompt": "the small", "answer": "never said"}]

    (outcome,) = measure_tasks(model, [read_task(rows, source="t")], config, seed=0)

    assert outcome.correct["exact"].tolist() == [1.0, 0.0]


def test_a_question_that_does_not_fit_is_refused_with_its_task(model: LoadedModel):
    rows = [{"question": "the cat " * 20, "choices": ["a", "b"], "answer": 0}] * 3
    with pytest.raises(ValueError, match=r"^tasks\.shots=2: a question of task 't' has \d+ tokens .* reads 64;"):
        measure_tasks(model, [read_task(rows, source="t")], TasksConfig(shots=(2,)), seed=0)


def test_forgetting_is_found_on_the_same_questions_and_not_made_of_noise():
    before, after = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 18 + [0.0] * 22)
    flipped = np.array([0.0, 1.0] + [1.0] * 28 + [0.0] * 10)
    old = [TaskOutcome("t", 0, {"sum": before, "mean": before})]
    new = [TaskOutcome("t", 0, {"sum": after, "mean": flipped})]
    lost, same = task_changes(old, new, seed=0)
    assert (lost.before, lost.after, lost.questions) == (0.75, 0.45, 40)
    assert lost.difference.value == pytest.approx(-0.3)
    assert lost.difference.finding == "below"
    assert same.difference.finding == "undecided"


def test_case_space_and_final_marks_do_not_count():
    assert is_exact(' "Paris."\n', "paris")
    assert not is_exact("in Paris", "paris")
