import logging
import math

import numpy as np
import pytest

from reward.interface import RewardFailure, RewardOutput
from rlhf.trainers.ppo_measures import (
    component_measures,
    mean_of_scored,
    rollout_measures,
    start_and_end,
    warn_of_unscored,
)
from rollout.types import Completion, Prompt, RolloutBatch

PROMPT = Prompt("p", "text", np.array([1], dtype=np.int32))


def completion(length, reason, version):
    ids, logprobs = np.zeros(length, dtype=np.int32), np.zeros(length, dtype=np.float32)
    return Completion("p", 0, ids, logprobs, reason, version)


def scores(*values):
    return np.array(values, dtype=np.float32)


def test_lengths_ends_and_ages_are_of_all_responses():
    answers = [completion(3, "stop", 7), completion(8, "length", 6), completion(1, "stop", 8), completion(4, "stop", 7)]

    assert rollout_measures(RolloutBatch([PROMPT] * 4, answers), newest_version=9) == {
        "rollout/response_length_mean": 4.0,
        "rollout/response_length_max": 8.0,
        "rollout/truncated_rate": 0.25,
        "rollout/eos_rate": 0.75,
        "rollout/policy_version": 6.0,
        "rollout/policy_age": 2.0,
    }


def test_a_component_is_averaged_over_what_it_scored_and_its_failures_are_counted():
    reward = RewardOutput(
        scores(math.nan, 2, 5),
        {"model": scores(math.nan, 1, 4), "rule": scores(1, 2, 6), "model/disagreement": scores(math.nan, 0.5, 1.5)},
    )

    assert component_measures(reward) == {
        "reward/model": 2.5,
        "reward/rule": 3.0,
        "reward/model/disagreement": 1.0,
        "reward/model/failed": 1.0,
        "reward/rule/failed": 0.0,
    }
    assert math.isnan(mean_of_scored(scores(math.nan)))


def test_unscored_responses_are_told_with_their_most_frequent_reasons(caplog):
    failures = [RewardFailure(index, reason) for index, reason in enumerate("abbccc")] + [RewardFailure(6, "d")]

    with caplog.at_level(logging.WARNING):
        warn_of_unscored(RewardOutput(scores(*range(9)), {}))
        warn_of_unscored(RewardOutput(scores(*range(9)), {}, failures))

    assert [record.getMessage() for record in caplog.records] == ["7 of 9 responses got no score: c (3); b (2); a (1)"]


def test_the_start_of_a_run_stands_beside_its_end_over_a_quarter_of_the_steps():
    rows = [
        {"objective/scores": score, "objective/scores_std": 0.5 + step, "objective/kl": step / 10, "time/step": 2.0}
        for step, score in enumerate([1, 3, 9, 9, 9, 9, 4, 7])
    ]
    rows[-1] |= {"eval/pretrain_perplexity": 12.0, "eval/alignment_tax": 0.25}

    assert start_and_end(rows) == {
        "score_start": 2.0,
        "score_end": 5.5,
        "score_std_start": 0.5,
        "score_rise_in_start_stds": 7.0,
        "kl": pytest.approx(0.65),
        "averaged_steps": 2,
        "pretrain_ppl": 12.0,
        "alignment_tax": 0.25,
        "seconds": 16.0,
    }
    assert start_and_end(rows[:1])["averaged_steps"] == 1
