"""Sampled answers on a page: the same prompts through training, and the worst and longest responses of its last steps.

Owns which rows of samples.jsonl are shown, and the marks on what changed from the first answer to the last.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import cast

from rlhf.reports.page import Answer, Cell, Part, Sample, Section, is_number
from rlhf.runtime.run_folder import Row

_SHOWN_PROMPTS = 8
_SHOWN_DECIMALS = 3
_HIDDEN_NUMBERS = frozenset({"step", "policy_version"})
_EXTREMES = {"worst": "Worst responses", "longest": "Longest responses"}
_EXTREMES_TEXT = {
    "worst": "The lowest scores of a step: is it the answer that is bad, or the reward that is wrong?",
    "longest": "The most tokens of a step: do they say more, or has the policy found that length pays?",
}


def word_diff(before: str, after: str) -> tuple[list[Part], list[Part]]:
    """Two texts in parts, word by word: what only the first has is "removed", what only the second has "added"."""
    old, new = (re.findall(r"\s+|[^\s]+", text) for text in (before, after))
    left, right = list[Part](), list[Part]()
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            left.append(Part("".join(old[a:b])))
            right.append(Part("".join(new[c:d])))
            continue
        left += [Part("".join(old[a:b]), "removed")] if b > a else []
        right += [Part("".join(new[c:d]), "added")] if d > c else []
    return left, right


def sample_sections(rows: Sequence[Row]) -> list[Section]:
    """A section for the followed prompts and one for each kind of extreme response; none where there are no rows."""
    return [*_followed(rows), *(section for kind in _EXTREMES for section in _extremes(rows, kind))]


def _followed(rows: Sequence[Row]) -> list[Section]:
    """First, middle and last answers to the same prompts."""
    by_prompt: dict[str, dict[int, Row]] = {}
    for row in rows:
        # PPO's table also holds responses of single steps, whose prompts differ from step to step.
        if row.get("kind", "fixed") == "fixed":
            by_prompt.setdefault(_as_text(row.get("prompt", "")), {}).setdefault(cast(int, row["step"]), row)
    samples = [_through_training(prompt, answers) for prompt, answers in list(by_prompt.items())[:_SHOWN_PROMPTS]]
    text = (
        "The same prompts, followed through training. Marked are words of the first answer that the last has not, and "
        "words of the last that the first had not."
    )
    return [Section("Samples", text, samples=samples)] if samples else []


def _through_training(prompt: str, by_step: dict[int, Row]) -> Sample:
    steps = sorted(by_step)
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]})
    answers = [_answer(f"step {step}", by_step[step]) for step in shown]
    if len(answers) > 1:
        removed, added = word_diff(answers[0].text, answers[-1].text)
        answers[0] = Answer(answers[0].name, answers[0].text, answers[0].scores, removed)
        answers[-1] = Answer(answers[-1].name, answers[-1].text, answers[-1].scores, added)
    return Sample(prompt, answers)


def _extremes(rows: Sequence[Row], kind: str) -> list[Section]:
    """The responses of one kind from the first and from the last step that has some."""
    steps = sorted({cast(int, row["step"]) for row in rows if row.get("kind") == kind})
    samples = [
        Sample(_as_text(row.get("prompt", "")), [_answer(f"step {step}", row)])
        for step in sorted({*steps[:1], *steps[-1:]}, reverse=True)
        for row in rows
        if row.get("kind") == kind and row["step"] == step
    ]
    return [Section(_EXTREMES[kind], _EXTREMES_TEXT[kind], samples=samples)] if samples else []


def _answer(name: str, row: Row) -> Answer:
    scores = {
        key.replace("_", " "): _shown(value)
        for key, value in row.items()
        if key not in _HIDDEN_NUMBERS and is_number(value)
    }
    return Answer(name, _as_text(row.get("response", "")), scores)


def _shown(value: float) -> Cell:
    """A number without the rounding errors that a KL of 0 has; they would be written with an exponent."""
    return round(value, _SHOWN_DECIMALS) + 0.0 if isinstance(value, float) and math.isfinite(value) else value


def _as_text(value: object) -> str:
    """A text, or a conversation as one line a turn."""
    if isinstance(value, list):
        turns = cast(Iterable[dict[str, object]], value)
        return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in turns)
    return str(value)
