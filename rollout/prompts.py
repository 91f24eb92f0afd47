"""Data rows -> tokenized prompts, and the order in which training takes them.

Owns what a row must hold to be a prompt, and the resumable stream over prompts. It reads no files; how text becomes
ids is `policies.tokenization`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from policies.tokenization import encode_prompt, render_prompt
from rollout.noise import keyed_generator
from rollout.types import Prompt

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptSet:
    """What came of the rows.

    Attributes:
        prompts: In the order of the rows; ids are unique.
        skipped: One line for each bad row that was left out.
    """

    prompts: list[Prompt]
    skipped: list[str]


def prompts_from_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_tokens: int,
    source: str,
    on_bad_row: Literal["error", "skip"] = "error",
    chat_template: str | None = None,
) -> PromptSet:
    """Tokenizes the `prompt` of every row: text, or messages with `role` and `content`.

    A row's `id` column, text or integer, becomes `Prompt.id`; without one it is the row's number, from 0. Columns
    other than `prompt` and `id` become `Prompt.fields` where JSON can hold them, because they travel to reward
    functions and into logs.

    Args:
        rows: Rows of one data set.
        tokenizer: The policy's.
        max_prompt_tokens: Longest allowed prompt, in tokens.
        source: Name of the data in errors.
        on_bad_row: "error" stops at the first bad row; "skip" leaves bad rows out and lists them.
        chat_template: Jinja template for messages; None takes the tokenizer's.

    Raises:
        ValueError: A bad row (no prompt, not text or messages, too long, id of another row), or no good row at all.
    """
    prompts: list[Prompt] = []
    skipped: list[str] = []
    row_of_id: dict[str, int] = {}
    for number, row in enumerate(rows):
        try:
            prompt = _read_row(row, number, tokenizer, max_prompt_tokens, chat_template)
            _claim_id(prompt.id, number, row_of_id)
        except _BadRowError as error:
            message = f"{source}, row {number}: {error}"
            if on_bad_row == "error":
                raise ValueError(f"{message}; or set data.on_bad_row=skip") from error
            skipped.append(message)
        else:
            prompts.append(prompt)
    if not prompts:
        raise ValueError(
            f"{source}: no prompt ({len(skipped)} bad rows{_first(skipped)}); at least one is needed: check the file"
        )
    return PromptSet(prompts, skipped)


class PromptStream:
    """Prompts without end: every epoch is a fresh permutation of all of them, and a function of seed and epoch alone.

    The state is two numbers, so a resumed run continues with exactly the prompts that the straight run would take.

    Args:
        prompts: At least one.
        seed: Seed of the run.
    """

    def __init__(self, prompts: Sequence[Prompt], *, seed: int) -> None:
        if not prompts:
            raise ValueError("prompts is empty; a stream needs at least one prompt: check data.train")
        self._prompts = prompts
        self._seed = seed
        self._seek(epoch=0, position=0)

    @property
    def epoch_progress(self) -> float:
        """Passes over the prompts so far; 1.5 is the middle of the second."""
        return self._epoch + self._position / len(self._prompts)

    def next(self, count: int) -> list[Prompt]:
        """The next `count` prompts, running on into the next epoch where one ends; may be more than there are."""
        taken: list[Prompt] = []
        while len(taken) < count:
            if self._position == len(self._prompts):
                self._seek(epoch=self._epoch + 1, position=0)
            stop = min(self._position + count - len(taken), len(self._prompts))
            taken += [self._prompts[index] for index in self._order[self._position : stop]]
            self._position = stop
        return taken

    def state_dict(self) -> dict[str, int]:
        """Plain integers: where the stream stands, and what it must be the stream of."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "prompts": len(self._prompts)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where the stream that gave `state` stood.

        Raises:
            ValueError: If that stream had another seed or another number of prompts, so that its position means
                nothing here.
        """
        for key, own in (("seed", self._seed), ("prompts", len(self._prompts))):
            if state[key] != own:
                raise ValueError(
                    f"prompt stream: the saved state has {key}={state[key]}, this run has {own}; resume with the same "
                    "data and seed"
                )
        self._seek(epoch=state["epoch"], position=state["position"])

    def _seek(self, *, epoch: int, position: int) -> None:
        self._epoch, self._position = epoch, position
        self._order = keyed_generator("prompt order", self._seed, epoch).permutation(len(self._prompts)).tolist()


class _BadRowError(Exception):
    """What is wrong with a row, and the remedy; the caller knows the row's place."""


def _read_row(
    row: Row, number: int, tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, chat_template: str | None
) -> Prompt:
    written = _written_prompt(row)
    try:
        text = render_prompt(written, tokenizer, chat_template=chat_template)
        token_ids = encode_prompt(text, tokenizer)
    except ValueError as error:
        raise _BadRowError(f"field 'prompt': {error}") from error
    if len(token_ids) > max_prompt_tokens:
        raise _BadRowError(
            f"field 'prompt' has {len(token_ids)} tokens, at most max_prompt_tokens={max_prompt_tokens} are allowed: "
            "shorten it or raise the limit"
        )
    return Prompt(id=_row_id(row, number), text=text, token_ids=token_ids, fields=_fields(row))


def _written_prompt(row: Row) -> str | Sequence[Mapping[str, Any]]:
    """The row's prompt as its author wrote it, after a check of its type."""
    prompt = row.get("prompt")
    if prompt is None:
        raise _BadRowError(
            f"field 'prompt' is missing (the row has {', '.join(map(repr, row)) or 'no fields'}): add text or messages"
        )
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Sequence) or not prompt or not all(map(_is_message, prompt)):
        raise _BadRowError(
            f"field 'prompt' is {_shortened(prompt)}; allowed are text, or a list of messages with text in 'role' and "
            "'content': rewrite it"
        )
    return prompt


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _row_id(row: Row, number: int) -> str:
    given = row.get("id")
    if given is None:
        return str(number)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise _BadRowError(f"field 'id' is {_shortened(given)}; text or an integer is allowed: rewrite or remove it")
    return str(given)


def _claim_id(prompt_id: str, number: int, row_of_id: dict[str, int]) -> None:
    # Two prompts of one id would get the same sampling noise.
    first = row_of_id.setdefault(prompt_id, number)
    if first != number:
        raise _BadRowError(f"field 'id' is {prompt_id!r}, as in row {first}; ids must be unique: rename one")


def _fields(row: Row) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("prompt", "id") and _is_json(value)}


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _first(messages: Sequence[str]) -> str:
    return f", the first: {messages[0]}" if messages else ""
