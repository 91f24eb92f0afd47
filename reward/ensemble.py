"""Several reward models as one: the mean of their scores, less a penalty where they disagree.

Owns the arithmetic. Members are ordinary reward models, each with its own folder and its own scale: raw scores of two
models have neither zero nor unit in common. Training them is `rlhf reward` with `ensemble_members`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reward.interface import RewardFailure, RewardFn, RewardOutput, RewardRequest, Scores


def combine(member_scores: NDArray[np.floating], *, penalty: float) -> tuple[Scores, Scores]:
    """Score and disagreement of each response: mean - penalty * std, and std, over the members.

    Coste et al. 2023 (arXiv:2310.02743, section 3, uncertainty-weighted optimisation) subtract the variance; the
    standard deviation is in the unit of the score, so one penalty means the same on every scale. Both divide by the
    number of members.

    Args:
        member_scores: (members, B) normalised scores; NaN where a member has none.
        penalty: Units of score for each unit of disagreement.

    Returns:
        (B,) scores and (B,) disagreements, NaN where a member has no score.
    """
    scores = np.asarray(member_scores, dtype=np.float64)
    disagreement = scores.std(axis=0)
    return (scores.mean(axis=0) - penalty * disagreement).astype(np.float32), disagreement.astype(np.float32)


class EnsembleReward:
    """The reward function of an ensemble.

    A response that one member cannot score has no score: the mean over the others would be on another scale of
    disagreement.

    Args:
        members: Two or more.
        penalty: Units of score for each unit of disagreement.
    """

    def __init__(self, members: Sequence[RewardFn], *, penalty: float) -> None:
        self._members, self._penalty = members, penalty

    def __call__(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        """Scores every request with every member; the components are `model` and `disagreement`."""
        outputs = [member(requests) for member in self._members]
        scores, disagreement = combine(np.stack([output.scores for output in outputs]), penalty=self._penalty)
        failures: dict[int, str] = {}
        for number, output in enumerate(outputs):
            for failure in output.failures:
                failures.setdefault(failure.index, f"member {number}: {failure.reason}")
        found = [RewardFailure(index, failures[index]) for index in sorted(failures)]
        return RewardOutput(scores, {"model": scores, "disagreement": disagreement}, found)
