"""Rows of many tasks -> demonstrations of the tasks that train, and questions of those that do not.

Owns which rows an epoch holds, and which template each gets: both a function of seed, task and row.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf.evaluation.tasks import Task, read_task
from rlhf.instructions.config import MixtureConfig
from rlhf.instructions.mixing import mixing_rates, whole_shares
from rlhf.instructions.templates import MissingColumnError, Template, templates_of
from rollout.noise import keyed_generator

Row = Mapping[str, Any]
OnBadRow = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class TaskRows:
    """The rows of one task."""

    task: str
    cluster: str
    rows: Sequence[Row]


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Rows with `prompt` and `completion`.

    Attributes:
        rows: The demonstrations, task after task.
        examples: How many of each task.
        rates: Mixing rate of each task.
        skipped: One line for each row that `on_bad_row=skip` left out.
    """

    rows: list[dict[str, str]]
    examples: dict[str, int]
    rates: dict[str, float]
    skipped: list[str]


def group_tasks(rows: Sequence[Row], *, source: str) -> list[TaskRows]:
    """The rows by task, in the order in which tasks come.

    Raises:
        ValueError: a row names no task or cluster, or a task is in two clusters.
    """
    grouped: dict[str, list[Row]] = defaultdict(list)
    clusters: dict[str, str] = {}
    for number, row in enumerate(rows):
        task, cluster = row.get("task"), row.get("cluster")
        if not isinstance(task, str) or not isinstance(cluster, str) or not task or not cluster:
            raise ValueError(f"{source}, row {number}: task is {task!r}, cluster {cluster!r}; a mixture needs both")
        if clusters.setdefault(task, cluster) != cluster:
            raise ValueError(
                f"{source}, row {number}: task {task!r} is in cluster {cluster!r}, before it was in "
                f"{clusters[task]!r}; a task belongs to one cluster"
            )
        grouped[task].append(row)
    return [TaskRows(task, clusters[task], found) for task, found in grouped.items()]


def split_clusters(
    tasks: Sequence[TaskRows], config: MixtureConfig, *, source: str
) -> tuple[list[TaskRows], list[TaskRows]]:
    """The tasks that train, and those that are held out.

    Raises:
        ValueError: a held-out cluster has no rows, or nothing is left to train on.
    """
    known = sorted({task.cluster for task in tasks})
    empty = [cluster for cluster in config.held_out_clusters if cluster not in known]
    if empty:
        raise ValueError(
            f"data.mixture.held_out_clusters: {source} has no row of {', '.join(map(repr, empty))}; its clusters are "
            f"{', '.join(known)}"
        )
    training = [task for task in tasks if task.cluster not in config.held_out_clusters]
    if not training:
        raise ValueError(
            f"data.mixture.held_out_clusters: all clusters of {source} are held out ({', '.join(known)}); leave one "
            "to train on"
        )
    return training, [task for task in tasks if task.cluster in config.held_out_clusters]


def mix(
    tasks: Sequence[TaskRows], templates: Sequence[Template], config: MixtureConfig, *, seed: int, on_bad_row: OnBadRow
) -> Demonstrations:
    """An epoch of the mixture: as many examples of each task as its rate says, each row in the words of one template.

    Rows are drawn without replacement, and again from the first once all were; a row that comes twice has another
    template, where the task has several.

    Raises:
        ValueError: a task has no template, or a row lacks a column.
    """
    rates = mixing_rates({task.task: len(task.rows) for task in tasks}, cap=config.cap, temperature=config.temperature)
    total = config.examples or sum(min(len(task.rows), config.cap) for task in tasks)
    shares = whole_shares(rates, total)
    skipped: list[str] = []
    told = {
        task.task: _told(task, shares[task.task], templates_of(task.task, templates), seed, on_bad_row, skipped)
        for task in tasks
    }
    rows = [row for of_task in told.values() for row in of_task]
    return Demonstrations(rows, {name: len(of_task) for name, of_task in told.items()}, rates, skipped)


def told_once(
    tasks: Sequence[TaskRows], templates: Sequence[Template], *, seed: int, on_bad_row: OnBadRow
) -> tuple[list[dict[str, str]], list[str]]:
    """Every row once, in the words of one template: for a held-out loss; and a line for each that was left out."""
    skipped: list[str] = []
    rows: list[dict[str, str]] = []
    for task in tasks:
        rows += _told(task, len(task.rows), templates_of(task.task, templates), seed, on_bad_row, skipped)
    return rows, skipped


def questions_of(task: TaskRows, config: MixtureConfig, *, on_bad_row: OnBadRow) -> Task:
    """A held-out task as questions: multiple choice where its choices are known, else free answers.

    Raises:
        ValueError: a row has no prompt or answer, or its answer is none of the choices.
    """
    options = config.choices.get(task.task)
    rows = [dict(row) if options is None else _with_choices(row, options) for row in task.rows]
    return read_task(rows, source=task.task, on_bad_row=on_bad_row)


def _told(
    task: TaskRows, count: int, templates: Sequence[Template], seed: int, on_bad_row: OnBadRow, skipped: list[str]
) -> list[dict[str, str]]:
    order = keyed_generator("mixture rows", seed, task.task).permutation(len(task.rows))
    first = keyed_generator("mixture templates", seed, task.task).integers(len(templates), size=len(task.rows))
    rows: list[dict[str, str]] = []
    for place in range(count):
        turn, index = divmod(place, len(order))
        row = int(order[index])
        template = templates[(int(first[row]) + turn) % len(templates)]
        try:
            rows.append(template.fill(task.rows[row]))
        except MissingColumnError as error:
            problem = f"task {task.task!r}, row {row} of it: {error}"
            if on_bad_row == "error":
                raise ValueError(f"{problem}; or set data.on_bad_row=skip") from error
            skipped.append(problem)
    return rows


def _with_choices(row: Row, options: Sequence[str] | str) -> dict[str, object]:
    question = row.get("prompt")
    if isinstance(options, str):
        found = re.findall(options, question, re.MULTILINE) if isinstance(question, str) else []
        options = list(dict.fromkeys(found))
    return {"question": question, "choices": list(options), "answer": row.get("answer")}
