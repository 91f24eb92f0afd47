"""Answers -> rankings: by a score, or as people have written them into a file.

Owns ties, and the check that a ranking is one of the answers that were collected. Nothing is sampled or trained here.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from reward.interface import RewardFn, RewardRequest
from rlhf.runtime import json_lines

Row = dict[str, Any]

SHAPE = '{"prompt": ..., "responses": [...], "ranking": [[2], [0, 1]]}'
"""A row of a rankings file: groups of indices into the responses, best first, ties in one group."""


def answers_id(prompt: str, responses: Sequence[str]) -> str:
    """Twelve digits that tell one prompt with its answers from every other."""
    return hashlib.sha256(json.dumps([prompt, list(responses)]).encode()).hexdigest()[:12]


def rank_by_score(answers: Sequence[Row], judge: RewardFn, *, tie: float) -> list[Row]:
    """The answers with a `ranking`; those without a score and prompts without a preference are left out.

    Args:
        answers: Rows with `prompt` and `responses`.
        judge: Scores them.
        tie: Largest distance to the next better answer that is no difference.
    """
    requests = [
        RewardRequest(prompt=row["prompt"], response=response, fields=row.get("fields", {}))
        for row in answers
        for response in row["responses"]
    ]
    scores = judge(requests).scores.tolist()
    ranked: list[Row] = []
    for row in answers:
        own, scores = scores[: len(row["responses"])], scores[len(row["responses"]) :]
        kept = [index for index, score in enumerate(own) if math.isfinite(score)]
        groups = score_groups([own[index] for index in kept], tie)
        if len(groups) > 1:
            ranked.append(row | {"responses": [row["responses"][index] for index in kept], "ranking": groups})
    return ranked


def score_groups(scores: Sequence[float], tie: float) -> list[list[int]]:
    """Indices in groups, best first; one no further than `tie` below the one before it joins its group."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    groups: list[list[int]] = []
    for place, index in enumerate(order):
        if place and scores[order[place - 1]] - scores[index] <= tie:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def read_rankings(path: Path, answers: Sequence[Row]) -> list[Row]:
    """What people have ranked of the answers; they may leave prompts out.

    Raises:
        ValueError: a row that is none of the answers, ranks one twice or not at all, or comes twice; or no row.
    """
    asked = {answers_id(row["prompt"], row["responses"]): row for row in answers}
    found: dict[str, Row] = {}
    for number, row in enumerate(json_lines.read_objects(path)):
        where = f"{path}, row {number}"
        prompt, responses = row.get("prompt"), row.get("responses")
        if not isinstance(prompt, str) or not isinstance(responses, list):
            raise ValueError(f"{where}: prompt or responses is missing; a row is {SHAPE}")
        name = answers_id(prompt, cast(list[str], responses))
        if name not in asked:
            raise ValueError(
                f"{where}: these are not the answers that were collected; leave prompt and responses as they are"
            )
        if name in found:
            raise ValueError(f"{where}: this prompt is ranked twice; keep one of the rows")
        found[name] = asked[name] | {"ranking": _ranking(row.get("ranking"), len(asked[name]["responses"]), where)}
    kept = [row for row in found.values() if len(row["ranking"]) > 1]
    if not kept:
        raise ValueError(f"{path}: no row prefers one answer to another; at least one must")
    return kept


def _ranking(given: object, count: int, where: str) -> list[list[int]]:
    groups = cast(list[object], given) if isinstance(given, list) else []
    flat = [index for group in groups for index in (cast(list[object], group) if isinstance(group, list) else [group])]
    if sorted(map(str, flat)) != sorted(map(str, range(count))):
        raise ValueError(
            f"{where}: ranking is {given!r}; name each of the {count} responses once by its index from 0, as in {SHAPE}"
        )
    return [[int(str(i)) for i in (cast(list[object], g) if isinstance(g, list) else [g])] for g in groups]
