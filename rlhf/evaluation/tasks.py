"""Task rows -> questions with solved rows in front: multiple choice and exact match.

    {"question": ..., "choices": [...], "answer": 1}     answer: index of a choice from 0, or its text
    {"prompt": ..., "answer": ...}                       answered in free words, compared as a whole

Owns what a row must hold, and which rows are shown solved. How a model does on them is `task_scores`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from rlhf.evaluation.config import TasksConfig
from rollout.noise import keyed_generator

Row = Mapping[str, Any]
TaskKind = Literal["multiple_choice", "exact_match"]


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One question.

    Attributes:
        question: What is asked.
        answer: The right answer, as text.
        choices: All answers; empty where the answer is free.
    """

    question: str
    answer: str
    choices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Task:
    """One file of questions of one kind."""

    name: str
    kind: TaskKind
    rows: Sequence[TaskRow]
    skipped: int = 0


def read_task(
    rows: Sequence[Row], *, source: str, field: str = "data.tasks", on_bad_row: Literal["error", "skip"] = "error"
) -> Task:
    """The task that a data source holds, named after it; the first good row decides the kind.

    `field` is the configuration key the source stands in, named by errors.

    Raises:
        ValueError: a bad row, or none that is good.
    """
    kept: list[TaskRow] = []
    skipped, kind = 0, None
    for number, row in enumerate(rows):
        try:
            read = _read_row(row)
            found: TaskKind = "multiple_choice" if read.choices else "exact_match"
            kind = kind or found
            if found != kind:
                raise _BadRowError(f"is of kind {found}, the rows before are {kind}: put them into a file of their own")
        except _BadRowError as error:
            if on_bad_row == "error":
                raise ValueError(f"{field}={source}, row {number}: {error}; or set data.on_bad_row=skip") from error
            skipped += 1
        else:
            kept.append(read)
    if kind is None:
        raise ValueError(f"{field}={source}: no row is a question ({skipped} bad rows); at least one is needed")
    return Task(task_name(source), kind, kept, skipped)


def task_name(source: str) -> str:
    """The file's name without its endings, or the last part of an embedded or hub name; a slice is left out."""
    name = Path(re.sub(r"\[.*\]$", "", source)).name
    return re.sub(r"[^A-Za-z0-9_-]", "_", name.split(".")[0]) or "task"


def contexts(task: Task, shots: int, config: TasksConfig, *, seed: int) -> list[str]:
    """What stands in front of each answer: `shots` other rows, solved, then the question.

    Which rows is a function of seed, task and row, so every model sees the same.

    Raises:
        ValueError: the task has too few rows for that.
    """
    if shots >= len(task.rows):
        raise ValueError(
            f"tasks.shots: {shots} solved rows in front of a question need more than the {len(task.rows)} rows of "
            f"task '{task.name}'; lower tasks.shots, or give more rows"
        )
    asked = range(len(task.rows)) if config.rows is None else range(min(config.rows, len(task.rows)))
    return [_context(task, index, shots, config, seed) for index in asked]


def _context(task: Task, index: int, shots: int, config: TasksConfig, seed: int) -> str:
    others = [other for other in range(len(task.rows)) if other != index]
    order = keyed_generator("task shots", seed, f"{task.name}/{index}").permutation(len(others))[:shots]
    solved = [f"{_asked(row, config)} {row.answer}" for row in (task.rows[others[place]] for place in order)]
    return config.separator.join([*solved, _asked(task.rows[index], config)])


def _asked(row: TaskRow, config: TasksConfig) -> str:
    return config.template.replace("{question}", row.question)


class _BadRowError(Exception):
    """What is wrong with a row, and the remedy."""


def _read_row(row: Row) -> TaskRow:
    if "choices" not in row or row["choices"] is None:
        return TaskRow(_text(row, "prompt"), _text(row, "answer"))
    choices = row["choices"]
    is_list = isinstance(choices, Sequence) and not isinstance(choices, str)
    texts = [choice for choice in cast(Sequence[object], choices) if isinstance(choice, str)] if is_list else []
    if len(texts) < 2 or len(texts) != len(choices) or len(set(texts)) < len(texts):
        raise _BadRowError(f"choices is {choices!r}; two or more different texts are needed")
    answer = row.get("answer")
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return TaskRow(_text(row, "question"), texts[answer], texts)
    if isinstance(answer, str) and answer in texts:
        return TaskRow(_text(row, "question"), answer, texts)
    raise _BadRowError(f"answer is {answer!r}; give the index (from 0) or the text of one of {len(texts)} choices")


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        raise _BadRowError(f"{field} is {value!r}; a text is needed (question, choices, answer, or prompt and answer)")
    return value
