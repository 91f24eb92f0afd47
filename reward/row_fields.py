"""One field of a data row at a time: present, of the right shape, or a message that says what is wrong and what to do.

Owns the sorting of good and bad rows, and the fields that several formats share: prompts and responses, as text or as
messages, and rankings. Which fields a format has is `reward.preferences` and `reward.rankings`. Imports nothing heavy.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

T = TypeVar("T")
Row = Mapping[str, Any]
Ranking = tuple[tuple[int, ...], ...]
OnBadRow = Literal["error", "skip"]
RenderPrompt = Callable[[str | Sequence[Mapping[str, Any]]], str]


class BadRowError(Exception):
    """What is wrong with a row, and the remedy; the caller knows the row's place."""


class RowReader:
    """Applies a reader to rows and sorts out the bad ones.

    Args:
        source: Name of the data in messages.
        on_bad_row: "error" stops at the first bad row; "skip" leaves it out and notes it.

    Attributes:
        skipped: One line for each bad row that was left out.
    """

    def __init__(self, source: str, on_bad_row: OnBadRow) -> None:
        self.source, self.on_bad_row = source, on_bad_row
        self.skipped: list[str] = []

    def read(self, rows: Iterable[Any], parse: Callable[[Any, str], T]) -> list[T]:
        """`parse(row, place)` of every good row, where place names data and row.

        Raises:
            ValueError: at the first bad row, unless it is to be skipped; or if no row is good.
        """
        results: list[T] = []
        for number, row in enumerate(rows):
            place = f"{self.source}, row {number}"
            try:
                results.append(parse(row, place))
            except BadRowError as error:
                self.refuse(place, error)
        self.require_any(results)
        return results

    def refuse(self, place: str, error: BadRowError) -> None:
        """Stops at a bad row, or notes it.

        Raises:
            ValueError: unless bad rows are skipped.
        """
        if self.on_bad_row == "error":
            raise ValueError(f"{place}: {error}; or set data.on_bad_row=skip") from error
        self.skipped.append(f"{place}: {error}")

    def require_any(self, results: Sequence[Any]) -> None:
        """Refuses data without a single good row.

        Raises:
            ValueError: with the first bad row, if there was one.
        """
        if not results:
            first = f", the first: {self.skipped[0]}" if self.skipped else ""
            raise ValueError(f"{self.source}: no usable row ({len(self.skipped)} bad rows{first}); check the file")


def read_field(row: Row, path: str) -> Any:
    """The value of a field, at a name or dotted path (see `value_at`).

    Raises:
        BadRowError: it is missing or null.
    """
    if not is_present(row, path):
        raise BadRowError(f"{describe_missing(row, path)}: add it")
    value = value_at(row, path)
    if value is None:
        raise BadRowError(f"field {path!r} is null: fill it")
    return value


def value_at(row: Row, path: str) -> Any:
    """What stands at a path: the column of that name, else step by step into objects (by key) and lists (by number).

    Raises:
        LookupError: nothing stands there.
    """
    if path in row:
        return row[path]
    value: Any = row
    for step in path.split("."):
        value = _enter(value, step)
    return value


def is_present(row: Row, path: str) -> bool:
    """Whether something stands at a path, be it null."""
    try:
        value_at(row, path)
    except LookupError:
        return False
    return True


def describe_missing(row: Row, path: str) -> str:
    """That nothing stands at `path`, and what stands beside it."""
    value: Any = row
    place, steps = "the row", path.split(".")
    for count, step in enumerate(steps[:-1], start=1):
        try:
            value = _enter(value, step)
        except LookupError:
            break
        place = repr(".".join(steps[:count]))
    if isinstance(value, Mapping):
        found = ", ".join(map(repr, value)) or "no fields"
    else:
        found = f"{len(value)} items" if is_list(value) else shortened(value)
    return f"field {path!r} is missing ({place} has {found})"


def _enter(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value[step]
    if is_list(value) and step.lstrip("-").isdigit():
        return value[int(step)]
    raise LookupError(step)


def read_prompt(row: Row, render: RenderPrompt) -> str:
    """The rendered field `prompt`.

    Raises:
        BadRowError: it is missing, neither text nor messages, or the chat template refuses it.
    """
    return render_prompt_field(read_field(row, "prompt"), render)


def render_prompt_field(prompt: Any, render: RenderPrompt) -> str:
    """A prompt as it stands in a row, rendered.

    Raises:
        BadRowError: it is neither text nor messages, or the chat template refuses it.
    """
    if not isinstance(prompt, str) and not (prompt and is_messages(prompt)):
        raise BadRowError(
            f"field 'prompt' is {shortened(prompt)}; allowed are text, or a list of messages with text in 'role' and "
            "'content': rewrite it"
        )
    try:
        return render(prompt)
    except ValueError as error:
        raise BadRowError(f"field 'prompt': {error}") from error


def read_response(response: Any, name: str, *, may_be_empty: bool = False) -> str:
    """The text of a response: as it is, or the content of its one message.

    Raises:
        BadRowError: it is neither, or it is empty and may not be.
    """
    message = response[0] if is_list(response) and len(response) == 1 else response
    if is_messages([message]):
        response = message["content"]
    if not isinstance(response, str):
        raise BadRowError(
            f"field {name!r} is {shortened(response)}; allowed are text, or one message, alone or in a list: rewrite it"
        )
    if not response.strip() and not may_be_empty:
        raise BadRowError(f"field {name!r} is empty; a response needs text: fill it or remove the row")
    return response


def read_groups(ranking: Any, count: int) -> Ranking:
    """A ranking of `count` responses: groups of indices, best first; a bare index is a group of its own.

    Raises:
        BadRowError: it is no list, or an index is repeated, left out or unknown.
    """
    if not is_list(ranking):
        raise BadRowError(f"field 'ranking' is {shortened(ranking)}; a list of groups of indices is needed: rewrite it")
    groups = tuple(tuple(group) if is_list(group) else (group,) for group in ranking)
    indices = [index for group in groups for index in group]
    if any(type(index) is not int for index in indices) or sorted(indices) != list(range(count)):
        raise BadRowError(
            f"field 'ranking' is {shortened(ranking)}; it must hold each of 0..{count - 1} exactly once: correct it"
        )
    return tuple(group for group in groups if group)


def is_list(value: object) -> bool:
    """Whether a value is a list rather than text."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages with text in `role` and `content`."""
    return is_list(value) and all(
        isinstance(item, Mapping) and all(isinstance(item.get(key), str) for key in ("role", "content"))
        for item in value
    )


def shortened(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
