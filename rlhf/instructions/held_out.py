"""Held-out tasks before and after training: accuracy of each, zero-shot and few-shot, with the paired difference.

Owns when they are asked and how it is told; how is `rlhf.evaluation.task_scores`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table as ConsoleTable

from policies.backbone import Backbone
from rlhf.evaluation.config import TasksConfig
from rlhf.evaluation.models import LoadedModel
from rlhf.evaluation.task_scores import TaskOutcome, measure_tasks, task_changes
from rlhf.evaluation.tasks import Task
from rlhf.reports.page import Cell, Section, Table

HELD_OUT_SUMMARY = "held_out_tasks"
"""Key of the rows in summary.json."""
_COLUMNS = ("task", "shots", "measure", "questions", "chance", "before", "after", "difference", "low", "high")
_TEXT = (
    "Tasks of clusters that training never saw. `sum` answers with the choice of the highest summed log-probability, "
    "`mean` with that of the highest per token, `exact` compares a greedy answer as a whole. The difference is after "
    "less before on the same questions, with its 95 % interval."
)


class HeldOutTasks:
    """Tasks that are asked before and after training.

    Args:
        tasks: What is asked.
        config: How.
        seed: Decides which rows are shown solved.
    """

    def __init__(self, tasks: Sequence[Task], config: TasksConfig, *, seed: int) -> None:
        self._tasks, self._config, self._seed = tasks, config, seed
        self._before: list[TaskOutcome] = []

    def ask_before(self, backbone: Backbone, adapter: str | None) -> None:
        """Measures the model that training starts from.

        Raises:
            ValueError: a question exceeds the context, or a task has too few rows.
        """
        self._before = self._ask(backbone, adapter)

    def ask_after(self, backbone: Backbone, adapter: str | None) -> list[dict[str, Any]]:
        """Measures the trained model; one row for each task, number of shots and measure."""
        changes = task_changes(self._before, self._ask(backbone, adapter), seed=self._seed)
        chances = {task.name: _chance(task) for task in self._tasks}
        return [
            {
                "task": change.task,
                "shots": change.shots,
                "measure": change.measure,
                "questions": change.questions,
                "chance": chances[change.task],
                "before": change.before,
                "after": change.after,
                "difference": change.difference.value,
                "low": change.difference.low,
                "high": change.difference.high,
            }
            for change in changes
        ]

    def _ask(self, backbone: Backbone, adapter: str | None) -> list[TaskOutcome]:
        return measure_tasks(LoadedModel.of(backbone, adapter), self._tasks, self._config, seed=self._seed)


def held_out_sections(summary: Mapping[str, Any]) -> list[Section]:
    """The table of the report; nothing where no cluster is held out."""
    rows: list[list[Cell]] = [[row[column] for column in _COLUMNS] for row in summary.get(HELD_OUT_SUMMARY, [])]
    return [Section("Held-out clusters", _TEXT, tables=[Table(_COLUMNS, rows)])] if rows else []


def console_table(rows: Sequence[Mapping[str, Any]]) -> ConsoleTable:
    """The same for the terminal."""
    table = ConsoleTable(box=SIMPLE, title="held-out tasks")
    for name in ("task", "shots", "measure", "chance", "before", "after", "difference (95 %)"):
        table.add_column(name, justify="left" if name in ("task", "measure") else "right", no_wrap=True)
    for row in rows:
        difference = f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
        chance = "-" if row["chance"] is None else f"{row['chance']:.3f}"
        cells = (chance, f"{row['before']:.3f}", f"{row['after']:.3f}", difference)
        table.add_row(row["task"], str(row["shots"]), row["measure"], *cells)
    return table


def _chance(task: Task) -> float | None:
    """Accuracy of guessing: mean of 1 / choices; None for free answers."""
    if task.kind != "multiple_choice":
        return None
    return sum(1 / len(row.choices) for row in task.rows) / len(task.rows)
