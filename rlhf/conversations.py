"""Demonstrations -> token ids and loss mask: prompt-completion rows and message lists.

A row is `prompt` + `completion`, each text or a message list, or `messages`. Owns which tokens carry loss: those the
model would write itself, end-of-sequence included. Every assistant turn of a conversation becomes an example of its
own, whose prompt has exactly the ids that sampling would start from; learning several turns from one sequence would not
guarantee that, because templates render a past turn differently from the one being written. Batching belongs to the
trainer.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jinja2
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from policies.tokenization import PLAIN_CHAT_TEMPLATE, Message, encode_completion, encode_prompt, render_prompt

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration.

    Attributes:
        token_ids: (T,) prompt and response, special tokens included.
        loss_mask: (T,) bool, True at the tokens the model learns to write.
    """

    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """What came of the rows.

    Attributes:
        examples: In the order of the rows.
        skipped: One line for each bad row that was left out.
    """

    examples: list[Example]
    skipped: list[str]


class _BadRowError(ValueError):
    """A row that cannot be trained on; the message says why, without the place."""


def examples_from_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    source: str,
    on_bad_row: Literal["error", "skip"] = "error",
    chat_template: str | None = None,
    limit: str = "max_tokens",
) -> ExampleSet:
    """Tokenizes demonstrations.

    Args:
        rows: See the module's description; other columns are ignored.
        tokenizer: Of the model that will be tuned.
        max_tokens: A longer example makes its row a bad row: cut off, it would teach to stop in mid-sentence.
        source: Where the rows come from, for errors.
        on_bad_row: "error" stops at the first bad row; "skip" leaves bad rows out and lists them.
        chat_template: Jinja template for messages; None takes the tokenizer's own.
        limit: What `max_tokens` is, for errors.

    Raises:
        ValueError: naming source, row and field of a bad row, or where no row is left.
    """
    examples: list[Example] = []
    skipped: list[str] = []
    for number, row in enumerate(rows):
        try:
            examples += _encode(row, tokenizer, max_tokens, chat_template, limit)
        except _BadRowError as error:
            message = f"{source}, row {number}: {error}"
            if on_bad_row == "error":
                raise ValueError(f"{message}; or set data.on_bad_row=skip") from error
            skipped.append(message)
    if not examples:
        raise ValueError(f"{source}: all {len(skipped)} rows are bad; at least one is needed: {skipped[0]}")
    return ExampleSet(examples, skipped)


def _encode(
    row: Row, tokenizer: PreTrainedTokenizerBase, max_tokens: int, chat_template: str | None, limit: str
) -> list[Example]:
    examples = [_join(prompt, answer, tokenizer) for prompt, answer in _exchanges(row, tokenizer, chat_template)]
    longest = max(len(example.token_ids) for example in examples)
    if longest > max_tokens:
        raise _BadRowError(f"{longest} tokens are more than {limit}={max_tokens}: shorten it or raise {limit}")
    return examples


def _join(prompt: str, answer: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    try:
        prompt_ids = encode_prompt(prompt, tokenizer)
    except ValueError as error:
        raise _BadRowError(f"prompt: {error}") from error
    answer_ids = encode_completion(answer, tokenizer)
    token_ids = np.concatenate([prompt_ids, answer_ids])
    return Example(token_ids, np.arange(len(token_ids)) >= len(prompt_ids))


def _exchanges(row: Row, tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> list[tuple[str, str]]:
    """The (rendered prompt, answer text) pairs of a row."""
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return [(prompt, _require_text(completion, "completion"))]
    if "messages" in row:
        history: list[Message] = []
        turns = _require_messages(row["messages"], "messages")
    else:
        history = _require_messages(_as_messages(prompt, "user"), "prompt")
        turns = _require_messages(_as_messages(completion, "assistant"), "completion")
    return _assistant_turns([*history, *turns], len(history), tokenizer, chat_template)


def _assistant_turns(
    messages: Sequence[Message], first: int, tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> list[tuple[str, str]]:
    """Every assistant turn from index `first` on, each with the rendered turns before it."""
    turns = [index for index in range(first, len(messages)) if messages[index]["role"] == "assistant"]
    if not turns or turns[0] == 0:
        raise _BadRowError("messages: an assistant message after at least one other is needed to learn from")
    try:
        return [_rendered_turn(messages[: index + 1], tokenizer, chat_template) for index in turns]
    except jinja2.TemplateError as error:
        raise _BadRowError(f"messages: the chat template refuses them ({error})") from error


def _rendered_turn(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, chat_template: str | None
) -> tuple[str, str]:
    """The prompt that asks for the last message, and what the template makes of that message behind it.

    Taken from the template rather than from the content, because some write more in front of the answer, such as a
    space or an empty thinking block. It ends before the end-of-sequence token, or before trailing white space where
    the template writes none.
    """
    prompt = render_prompt(messages[:-1], tokenizer, chat_template=chat_template)
    template = chat_template or tokenizer.chat_template or PLAIN_CHAT_TEMPLATE
    whole = cast(
        str,
        tokenizer.apply_chat_template(
            [dict(message) for message in messages], chat_template=cast(str, template), tokenize=False
        ),
    )
    if isinstance(tokenizer.bos_token, str) and not whole.startswith(prompt):
        # `render_prompt` leaves out a beginning-of-sequence token that the tokenizer adds itself.
        whole = whole.removeprefix(tokenizer.bos_token)
    if not whole.startswith(prompt):
        raise ValueError(
            "model.chat_template: the rendered conversation does not begin with the rendered prompt, so it is unclear "
            "which part the model should write; set a template whose generation prompt begins an assistant message"
        )
    answer, found, _ = whole[len(prompt) :].partition(cast(str, tokenizer.eos_token))
    return prompt, answer if found else answer.rstrip()


def _as_messages(value: object, role: str) -> object:
    """A text beside a message list counts as one message."""
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _require_messages(value: object, field: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _BadRowError(f"{field} is {_shown(value)}; text or a list of messages is needed")
    for message in cast(list[object], value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise _BadRowError(f"{field} holds {_shown(message)}; each message needs a role and a content")
        if message["role"] == "assistant" or not isinstance(message.get("content"), str):
            _require_text(message.get("content"), f"{field}: content of role {message['role']}")
    return cast(list[Message], value)


def _require_text(value: object, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _BadRowError(f"{field} is {_shown(value)}; text of at least one character is needed")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return "missing" if value is None else text if len(text) <= 60 else f"{text[:57]}..."
