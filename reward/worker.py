"""The reward role as a plain class, to be called in this process or from inside an actor. Owns nothing but the call."""

from collections.abc import Sequence

from reward.interface import RewardFn, RewardOutput, RewardRequest


class RewardWorker:
    """Scores batches with one reward function.

    Args:
        reward_fn: What scores, usually from `reward.composite.build_reward`.
    """

    def __init__(self, reward_fn: RewardFn) -> None:
        self._reward_fn = reward_fn

    def score(self, requests: Sequence[RewardRequest]) -> RewardOutput:
        """Scores every request; failures are data."""
        return self._reward_fn(requests)
