"""Loss spikes: which loss stands out of those before it, and how often a run was taken back for it.

After Chowdhery et al. 2022, section 5.1: a run with a spike goes on from a checkpoint before it, past the data that was
seen before and during it. Owns detection and the counts; weights, data and checkpoints are the trainer's.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar

from rlhf.config import SpikeConfig

NORMAL_CONSISTENCY = 1.4826
"""Factor that makes the median absolute deviation of a normal distribution its standard deviation."""
_SMALLEST_SPREAD = 1e-3
"""Share of the median that counts as spread at least: losses that are all alike leave none."""


class LossSpikeError(RuntimeError):
    """A loss stands out; nothing was changed by it."""


class RepeatedSpikesError(RuntimeError):
    """A run was taken back more often than it may be; the state before the last spike is saved."""

    resuming_repeats_it: ClassVar[bool] = True
    """The command line offers --resume after other failures, not after this one."""


class SpikeWatch:
    """The losses of a run, and what was done about spikes among them.

    Attributes:
        rollbacks: How often the run was taken back.
        skipped_sequences: Sequences that were passed over for it.
    """

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self.rollbacks = self.skipped_sequences = 0

    def check(self, loss: float) -> None:
        """Looks at the loss of a step that has not been taken yet.

        Raises:
            LossSpikeError: it stands out.
        """
        score = self.score(loss)
        if score is not None and score > self._config.z_threshold:
            raise LossSpikeError(
                f"a loss of {loss:.4g} is {score:.1f} robust standard deviations above the median of the "
                f"{len(self._losses)} steps before, {statistics.median(self._losses):.4g}"
            )

    def score(self, loss: float) -> float | None:
        """Z = (loss - median) / (1.4826 * median absolute deviation); None until half of the window is there."""
        if 2 * len(self._losses) < self._config.window_steps:
            return None
        median = statistics.median(self._losses)
        spread = NORMAL_CONSISTENCY * statistics.median(abs(value - median) for value in self._losses)
        return (loss - median) / max(spread, _SMALLEST_SPREAD * abs(median), math.ulp(1.0))

    def accept(self, loss: float) -> None:
        """Takes the loss of a step that was taken."""
        self._losses.append(loss)

    def count_rollback(self, skipped_sequences: int) -> None:
        """Counts a rollback and the sequences that it passed over.

        Raises:
            RepeatedSpikesError: there were too many.
        """
        self.rollbacks += 1
        self.skipped_sequences += skipped_sequences
        if self.rollbacks > self._config.max_rollbacks:
            raise RepeatedSpikesError(
                f"spikes.max_rollbacks={self._config.max_rollbacks}: the loss has spiked once more; lower "
                "optimizer.learning_rate, look at the data (alerts.jsonl tells the steps), or raise the limit"
            )

    def metrics(self) -> dict[str, float]:
        """The counts, for the log line of a step."""
        return {
            "progress/rollbacks": float(self.rollbacks),
            "progress/skipped_sequences": float(self.skipped_sequences),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides what `check` will say."""
        return {
            "losses": list(self._losses),
            "rollbacks": self.rollbacks,
            "skipped_sequences": self.skipped_sequences,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        self._losses.clear()
        self._losses.extend(state["losses"])
        self.rollbacks, self.skipped_sequences = state["rollbacks"], state["skipped_sequences"]
