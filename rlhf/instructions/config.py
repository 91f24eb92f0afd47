"""Configuration of a mixture of tasks for `rlhf sft`."""

import re

from pydantic import Field, field_validator

from policies.config import StrictModel
from rlhf.evaluation.config import TasksConfig


class MixtureConfig(StrictModel):
    """Rows of many tasks, each with columns `task` and `cluster`, told by templates (Wei et al. 2022)."""

    templates: str
    """Rows with `task`, `prompt` and `completion`: texts with columns of the data as `{column}`, `{{` and `}}` for
    braces. `task` is the name of one, or `*` for every task; a task takes all that fit, each equally often."""
    held_out_clusters: tuple[str, ...] = ()
    """Clusters that training never sees; their tasks are asked before and after it, with rows of `data.eval`, or of
    `data.train` where there is none."""
    cap: int = Field(default=3000, ge=1)
    """Most rows that a task counts with in mixing (Raffel et al. 2020, section 3.5.2)."""
    temperature: float = Field(default=1.0, ge=1)
    """T of the mixing rates min(rows, cap)^(1/T): 1 is proportional to rows, large values take tasks equally."""
    examples: int | None = Field(default=None, ge=1)
    """Examples of one epoch; null is the sum of min(rows, cap). A task with fewer rows than its share repeats them."""
    choices: dict[str, tuple[str, ...] | str] = {}
    """By task: its possible answers, or a regular expression whose matches in the row's prompt are (its group, where it
    has one). A held-out task with choices is asked by rank classification, one without by exact match."""
    evaluation: TasksConfig = TasksConfig()
    """How held-out tasks are asked; `{question}` is the row's `prompt`, the right answer its `answer`."""

    @field_validator("choices")
    @classmethod
    def _patterns_compile(cls, choices: dict[str, tuple[str, ...] | str]) -> dict[str, tuple[str, ...] | str]:
        for task, options in choices.items():
            try:
                re.compile(options if isinstance(options, str) else "")
            except re.error as error:
                raise ValueError(f"{task}: {options!r} is no regular expression ({error}); correct it") from error
        return choices
