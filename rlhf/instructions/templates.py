"""A row in the words of a template: `{column}` stands for the row's column, `{{` and `}}` for braces.

Owns what a template must hold and what it makes of a row. Which template a row gets is `mixture`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

EVERY_TASK = "*"
_SLOT = re.compile(r"\{\{|\}\}|\{(\w+)\}|[{}]")


class MissingColumnError(ValueError):
    """A row lacks a column that its template names."""


@dataclass(frozen=True, slots=True)
class Template:
    """How a task is put into words.

    Attributes:
        name: Where it stands, for errors.
        task: The task that it is for; `EVERY_TASK` for all.
        prompt: Text with slots that asks.
        completion: Text with slots that answers.
    """

    name: str
    task: str
    prompt: str
    completion: str

    def fill(self, row: Row) -> dict[str, str]:
        """`prompt` and `completion` of a row.

        Raises:
            MissingColumnError: the row has no text in a column.
        """
        return {"prompt": self._filled(self.prompt, row), "completion": self._filled(self.completion, row)}

    def _filled(self, text: str, row: Row) -> str:
        def value_of(found: re.Match[str]) -> str:
            column = found[1]
            if column is None:
                return found[0][0]
            value = row.get(column)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if not isinstance(value, str) or not value.strip():
                raise MissingColumnError(
                    f"{self.name} needs the column {column!r}, which is {value!r}; the row has {', '.join(row)}"
                )
            return value

        return _SLOT.sub(value_of, text)


def read_templates(rows: Sequence[Row], *, source: str) -> list[Template]:
    """The templates of a data source, checked.

    Raises:
        ValueError: a template lacks a text or a slot, or has a lone brace.
    """
    return [_read_template(row, f"{source}, row {number}") for number, row in enumerate(rows)]


def templates_of(task: str, templates: Sequence[Template]) -> list[Template]:
    """The templates that fit a task, in order.

    Raises:
        ValueError: there is none.
    """
    found = [template for template in templates if template.task in (task, EVERY_TASK)]
    if not found:
        raise ValueError(
            f"data.mixture.templates: none is for the task {task!r} or for '*'; add one, or leave the task's rows out"
        )
    return found


def _read_template(row: Row, name: str) -> Template:
    texts: dict[str, str] = {}
    for field in ("task", "prompt", "completion"):
        value = row.get(field)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name}: {field} is {value!r}; a template has the texts task, prompt and completion")
        texts[field] = value
    for field in ("prompt", "completion"):
        _require_slots(texts[field], f"{name}: {field} {texts[field]!r}")
    return Template(name, **texts)


def _require_slots(text: str, place: str) -> None:
    found = [match for match in _SLOT.finditer(text) if match[0] not in ("{{", "}}")]
    if any(match[1] is None for match in found):
        raise ValueError(f"{place} has a lone brace; name a column as {{column}}, and write braces as {{{{ and }}}}")
    if not found:
        raise ValueError(f"{place} has no slot, so every row would read the same; name a column as {{column}}")
