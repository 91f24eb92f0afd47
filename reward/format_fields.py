"""Fields of a row under the names that a format gives them: `chosen_field: best.text` finds `chosen` there.

Owns the link between a format's settings and a row. What a field must hold is `reward.row_fields` and the readers of
each format.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from reward.row_fields import BadRowError, Row, describe_missing, is_present, read_field, value_at

FieldPath = Annotated[str, Field(min_length=1)]
"""Column, or a dotted path into one: keys of objects and numbers of list items, `info.post`, `turns.-1.content`."""
FieldPaths = FieldPath | Annotated[tuple[FieldPath, ...], Field(min_length=2)]
"""One path to a list, or a list of paths to its items."""


def read_required(row: Row, format: BaseModel, name: str) -> Any:
    """The value of the field that `format` calls `<name>_field`; a list for several paths.

    Raises:
        BadRowError: it is missing or null; names the setting beside the row's columns.
    """
    setting = f"{name}_field"
    paths = getattr(format, setting)
    try:
        return read_field(row, paths) if isinstance(paths, str) else [read_field(row, path) for path in paths]
    except BadRowError as error:
        raise BadRowError(
            f"{error}, set data.format.{setting} to the column that holds it, or data.format.kind to the shape of the "
            "rows"
        ) from error


def read_optional(row: Row, format: BaseModel, name: str) -> Any:
    """The same for a field that rows may lack: None where it is null, or absent under its conventional name.

    A name that somebody set must be there, so that a slip of the pen is not taken for rows without the field.

    Raises:
        BadRowError: nothing stands where the setting points to.
    """
    setting = f"{name}_field"
    paths = getattr(format, setting)
    if paths == type(format).model_fields[setting].default:
        return value_at(row, paths) if is_present(row, paths) else None
    values: list[Any] = []
    for path in [paths] if isinstance(paths, str) else paths:
        if not is_present(row, path):
            raise BadRowError(f"{describe_missing(row, path)}: correct data.format.{setting}")
        values.append(value_at(row, path))
    if isinstance(paths, str):
        return values[0]
    return None if all(value is None for value in values) else values
