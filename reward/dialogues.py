"""Whole dialogues -> the turns that they share, which are the prompt, and one answer each.

Owns that cut, and transcripts: dialogues in one text with a mark in front of each turn. What a row must hold besides is
`reward.preferences` and `reward.rankings`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import Field

from policies.config import StrictModel
from reward.row_fields import BadRowError, is_list, is_messages, shortened


class TurnMarks(StrictModel):
    """What stands in front of each turn of a transcript."""

    user: str = Field(default="\n\nHuman:", min_length=1)
    """Mark of the user's turns."""
    assistant: str = Field(default="\n\nAssistant:", min_length=1)
    """Mark of the assistant's turns."""


def read_transcript(text: Any, name: str, marks: TurnMarks) -> list[dict[str, str]]:
    """The messages of a transcript; one space after a mark belongs to it.

    Raises:
        BadRowError: it is no text, or does not begin with a mark.
    """
    roles = {marks.user: "user", marks.assistant: "assistant"}
    pieces = re.split(f"({'|'.join(map(re.escape, roles))})", text) if isinstance(text, str) else [text]
    if pieces[0] or len(pieces) == 1:
        raise BadRowError(
            f"field {name!r} is {shortened(text)}; a transcript begins with {marks.user!r} or {marks.assistant!r}: "
            "correct the row, or data.format.turns"
        )
    return [
        {"role": roles[mark], "content": content.removeprefix(" ")}
        for mark, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def split_dialogues(prompt: Any, responses: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """(prompt, answers) of responses that are whole dialogues: the turns that all share, and what each goes on with.

    Responses of another shape, and single messages beside a prompt, are answers already and come back as they are.

    Args:
        prompt: As written; None where the turns alone say it. A text must be one of the shared turns, messages the
            first of them.
        responses: As written, by the names of their fields; they differ.

    Raises:
        BadRowError: the dialogues do not share a prompt, or go on with more than one turn.
    """
    prompt, responses = _with_plain_content(prompt), {name: _with_plain_content(r) for name, r in responses.items()}
    dialogues = list(responses.values())
    if not all(is_list(dialogue) for dialogue in dialogues):
        _refuse_mixed(prompt, responses)
        return prompt, dialogues
    if prompt is not None and all(len(dialogue) == 1 for dialogue in dialogues):
        return prompt, dialogues
    for name, dialogue in responses.items():
        if not is_messages(dialogue):
            raise BadRowError(
                f"field {name!r} is {shortened(dialogue)}; allowed are text, or a list of messages with text in 'role' "
                "and 'content': rewrite it"
            )
    shared = _shared_turns(cast(Sequence[Sequence[Any]], dialogues))
    if prompt is not None and not _is_told_by(prompt, shared):
        raise BadRowError(
            f"fields {_names(responses)} are whole dialogues, and the turns they share do not hold the prompt "
            f"({shortened(prompt)}): correct or remove one of them"
        )
    answers = [list(dialogue[len(shared) :]) for dialogue in dialogues]
    for name, answer in zip(responses, answers, strict=True):
        if len(answer) != 1:
            raise BadRowError(
                f"field {name!r} goes on for {len(answer)} turns after those that {_names(responses)} share; a list of "
                "one message is needed: cut the dialogues behind the first answers that differ"
            )
    return shared or prompt, answers


def _with_plain_content(value: Any) -> Any:
    """Messages whose content is a list of text parts (`{"type": "text", "text": ...}`) with the text in its place."""
    return [_joined(message) for message in cast(Sequence[Any], value)] if is_list(value) else value


def _joined(message: Any) -> Any:
    parts: Any = message.get("content") if isinstance(message, Mapping) else None
    if not is_list(parts) or not all(map(_is_text_part, parts)):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def _is_text_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _refuse_mixed(prompt: Any, responses: Mapping[str, Any]) -> None:
    """Whole dialogues are compared with each other only; beside a prompt, one message may stand for a text."""
    lengths = {name: len(value) for name, value in responses.items() if is_list(value)}
    if any(length > 1 or prompt is None for length in lengths.values()):
        other = next(name for name in responses if name not in lengths)
        raise BadRowError(
            f"field {other!r} is {shortened(responses[other])}, but {_names(lengths)} holds a dialogue; a list of "
            "messages is needed: rewrite it"
        )


def _shared_turns(dialogues: Sequence[Sequence[Any]]) -> list[Any]:
    count = 0
    for turns in zip(*dialogues, strict=False):
        if any(turn != turns[0] for turn in turns):
            break
        count += 1
    return list(dialogues[0][:count])


def _is_told_by(prompt: Any, shared: Sequence[Any]) -> bool:
    if isinstance(prompt, str):
        return any(turn["content"].strip() == prompt.strip() for turn in shared)
    return is_list(prompt) and list(prompt) == list(shared[: len(prompt)])


def _names(responses: Mapping[str, Any]) -> str:
    return " and ".join(map(repr, responses))
