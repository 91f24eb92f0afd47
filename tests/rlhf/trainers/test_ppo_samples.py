import math

import numpy as np
import pytest

from reward.interface import RewardOutput, RewardRequest
from rlhf.trainers.ppo_samples import JudgedBatch
from rollout.types import Completion, Prompt, RolloutBatch

LENGTHS = (2, 5, 1, 5, 3)
SCORES = (0.5, -1.0, math.nan, -3.0, 0.25)


def judged() -> JudgedBatch:
    """Five responses: token t of response i has log-prob -(t + 1) / 4, under the reference -(t + 2) / 4 + i / 8."""
    prompts = [Prompt(id=f"p{i}", text=f"prompt {i}", token_ids=np.array([1, 2], np.int32)) for i in range(5)]
    completions = [
        Completion(
            prompt_id=f"p{i}",
            response_index=0,
            token_ids=np.arange(length, dtype=np.int32),
            logprobs=np.array([-(t + 1) / 4 for t in range(length)], np.float32),
            finish_reason="stop",
            policy_version=6,
        )
        for i, length in enumerate(LENGTHS)
    ]
    scores = np.array(SCORES, np.float32)
    components = {"proxy": scores, "gold": np.arange(5, dtype=np.float32)}
    return JudgedBatch(
        batch=RolloutBatch(prompts, completions),
        requests=[RewardRequest(f"prompt {i}", f"response {i}") for i in range(5)],
        reward=RewardOutput(scores, components),
        reference_logprobs=[
            np.array([-(t + 2) / 4 + i / 8 for t in range(length)], np.float32) for i, length in enumerate(LENGTHS)
        ],
    )


def test_a_row_holds_texts_score_every_component_kl_and_length() -> None:
    # (1/4 - 3/8) nats a token, five tokens.
    assert judged().rows("fixed")[3] == {
        "kind": "fixed",
        "prompt_id": "p3",
        "prompt": "prompt 3",
        "response": "response 3",
        "score": -3.0,
        "reward/proxy": -3.0,
        "reward/gold": 3.0,
        "kl": pytest.approx(-0.625),
        "response_tokens": 5,
        "policy_version": 6,
    }


def test_the_worst_come_lowest_first_and_what_has_no_score_is_none_of_them() -> None:
    worst = [row for row in judged().worst_and_longest() if row["kind"] == "worst"]
    assert [row["prompt_id"] for row in worst] == ["p3", "p1", "p4"]


def test_the_longest_come_longest_first_and_of_equals_the_earlier() -> None:
    longest = [row for row in judged().worst_and_longest() if row["kind"] == "longest"]
    assert [(row["prompt_id"], row["response_tokens"]) for row in longest] == [("p1", 5), ("p3", 5), ("p4", 3)]


def test_all_rows_have_the_same_columns() -> None:
    rows = judged().rows("fixed") + judged().worst_and_longest()
    assert len({tuple(row) for row in rows}) == 1
