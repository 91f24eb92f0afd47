import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reward.interface import RewardFailure, RewardOutput, RewardRequest
from rlhf.rounds.ranking import answers_id, rank_by_score, read_rankings, score_groups
from rlhf.runtime.json_lines import write_objects

ANSWERS: list[dict[str, Any]] = [
    {"prompt": "who?", "responses": ["a", "bbb", "cc"], "source": "round-1", "fields": {"bonus": 10}},
    {"prompt": "where?", "responses": ["xx", "yy"], "source": "round-1", "fields": {}},
]


def by_length(requests: Sequence[RewardRequest]) -> RewardOutput:
    """The length of an answer and the bonus of its row; nothing for "cc"."""
    scores = [len(one.response) + one.fields.get("bonus", 0) for one in requests]
    scores = np.array(
        [math.nan if one.response == "cc" else score for one, score in zip(requests, scores, strict=True)]
    )
    lost = [RewardFailure(index, "cc") for index in np.flatnonzero(np.isnan(scores)).tolist()]
    return RewardOutput(scores.astype(np.float32), {"length": scores.astype(np.float32)}, lost)


def test_scores_become_groups_best_first_and_near_ones_tie() -> None:
    assert score_groups([0.2, 1.5, 0.9, 0.25], 0.0) == [[1], [2], [3], [0]]
    assert score_groups([0.2, 1.5, 0.9, 0.25], 0.1) == [[1], [2], [3, 0]]
    assert score_groups([2.0, 2.0], 0.0) == [[0, 1]]
    assert score_groups([], 0.0) == []


def test_answers_without_a_score_and_prompts_without_a_preference_are_left_out() -> None:
    (row,) = rank_by_score(ANSWERS, by_length, tie=0.0)
    assert (row["prompt"], row["responses"], row["ranking"]) == ("who?", ["a", "bbb"], [[1], [0]])
    assert row["source"] == "round-1"


def test_a_file_of_people_is_read_with_what_was_collected(tmp_path: Path) -> None:
    path = tmp_path / "rankings.jsonl"
    given = {"prompt": "who?", "responses": ["a", "bbb", "cc"], "ranking": [[2], [0, 1]]}
    tied = {"prompt": "where?", "responses": ["xx", "yy"], "ranking": [[0, 1]]}
    write_objects(path, [given, tied])
    assert read_rankings(path, ANSWERS) == [ANSWERS[0] | {"ranking": [[2], [0, 1]]}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "who?"}], "row 0: prompt or responses is missing; a row is"),
        ([{"prompt": "who?", "responses": ["a", "bbb"], "ranking": [[0], [1]]}], "not the answers that were collected"),
        ([ANSWERS[1] | {"ranking": [[0], [0]]}], "name each of the 2 responses once by its index from 0"),
        ([ANSWERS[1] | {"ranking": [[0], [1], [2]]}], "name each of the 2 responses once"),
        ([ANSWERS[1]], "ranking is None"),
        ([ANSWERS[1] | {"ranking": [[0], [1]]}] * 2, "row 1: this prompt is ranked twice"),
        ([ANSWERS[1] | {"ranking": [[0, 1]]}], "no row prefers one answer to another"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    path = tmp_path / "rankings.jsonl"
    write_objects(path, rows)
    with pytest.raises(ValueError, match=message):
        read_rankings(path, ANSWERS)


def test_prompts_and_their_answers_have_names_of_their_own() -> None:
    assert answers_id("a", ["b", "c"]) == answers_id("a", ["b", "c"])
    assert len({answers_id("a", ["b", "c"]), answers_id("a", ["c", "b"]), answers_id("ab", ["c"])}) == 3
