"""Numbers of a PPO step from what the roles returned, and of a whole run from its log lines.

Owns what is averaged over what. Counting on from step to step, times and logging are `rlhf.trainers.ppo`'s business.
"""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reward.interface import RewardOutput, Scores
from rollout.types import RolloutBatch

logger = logging.getLogger(__name__)

_MOST_AVERAGED_STEPS = 10


def rollout_measures(batch: RolloutBatch, *, newest_version: int) -> dict[str, float]:
    """Lengths in tokens, how responses ended, and how many versions before `newest_version` sampled them."""
    lengths = [len(completion.token_ids) for completion in batch.completions]
    truncated = float(np.mean([completion.is_truncated for completion in batch.completions]))
    versions = [completion.policy_version for completion in batch.completions]
    return {
        "rollout/response_length_mean": float(np.mean(lengths)),
        "rollout/response_length_max": float(max(lengths)),
        "rollout/truncated_rate": truncated,
        "rollout/eos_rate": 1.0 - truncated,
        "rollout/policy_version": float(min(versions)),
        "rollout/policy_age": float(newest_version - np.mean(versions)),
    }


def component_measures(reward: RewardOutput) -> dict[str, float]:
    """Mean of each component over what it scored, and how many responses it failed on."""
    means = {f"reward/{name}": mean_of_scored(scores) for name, scores in reward.components.items()}
    # A component with a slash is no score of its own, but says something about another one's.
    failed = {
        f"reward/{name}/failed": float(np.count_nonzero(~np.isfinite(scores)))
        for name, scores in reward.components.items()
        if "/" not in name
    }
    return means | failed


def warn_of_unscored(reward: RewardOutput) -> None:
    """Says how many responses are dropped, and the most frequent reasons."""
    if reward.failures:
        reasons = Counter(failure.reason for failure in reward.failures).most_common(3)
        listed = "; ".join(f"{reason} ({count})" for reason, count in reasons)
        logger.warning("%d of %d responses got no score: %s", len(reward.failures), len(reward.scores), listed)


def mean_of_scored(scores: Scores) -> float:
    """Mean over what got a score; NaN where nothing did."""
    scored = scores[np.isfinite(scores)]
    return float(scored.mean()) if scored.size else math.nan


def start_and_end(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First and last steps of a run beside each other: the mean score of both, in the start's standard deviations."""
    window = max(1, min(_MOST_AVERAGED_STEPS, len(rows) // 4))
    first, last = rows[0], rows[-1]

    def mean(column: str, part: Sequence[Mapping[str, Any]]) -> float:
        return float(np.mean([row[column] for row in part]))

    start, end = mean("objective/scores", rows[:window]), mean("objective/scores", rows[-window:])
    return {
        "score_start": start,
        "score_end": end,
        "score_std_start": first["objective/scores_std"],
        "score_rise_in_start_stds": (end - start) / max(float(first["objective/scores_std"]), 1e-9),
        "kl": mean("objective/kl", rows[-window:]),
        "averaged_steps": window,
        "pretrain_ppl": last.get("eval/pretrain_perplexity"),
        "alignment_tax": last.get("eval/alignment_tax"),
        "seconds": float(sum(row["time/step"] for row in rows)),
    }
