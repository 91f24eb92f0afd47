"""The rollout role on one device: a generator that answers only for the version it was asked for.

Owns the checks around an engine. A plain class: the process that hosts it, and the calls that reach it, belong to the
caller.
"""

from collections.abc import Sequence

from rollout.generation import Generator
from rollout.types import Completion, PerToken, Prompt, TokenIds
from rollout.weight_sync import Ack, StaleWeightsError, WeightUpdate, unpack


class RolloutWorker:
    """One generator and the guard of its version.

    Args:
        generator: The engine.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    @property
    def version(self) -> int:
        """Number of the policy it samples from."""
        return self._generator.version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, expected_version: int
    ) -> list[Completion]:
        """Completions of the jobs, in order, all of the expected version.

        Raises:
            StaleWeightsError: if the worker's weights have another version.
            ValueError: if a prompt doesn't fit.
        """
        if self.version != expected_version:
            raise StaleWeightsError(
                f"rollout worker holds policy version {self.version}, asked was {expected_version}; send it that "
                "version first"
            )
        return self._generator.generate(prompts, response_indices, seed=seed, step=step)

    def apply_update(self, update: WeightUpdate) -> Ack:
        """Verifies and loads an update. Repeating the last one is harmless.

        Raises:
            ChecksumError: if it was damaged; the old weights stay.
            StaleWeightsError: if it is older than what the worker has.
        """
        if update.version < self.version:
            raise StaleWeightsError(
                f"weight update {update.version} is older than the worker's version {self.version}; send the newest"
            )
        tensors = unpack(update)
        self._generator.load_weights(tensors, version=update.version)
        return Ack(self.version, update.checksum)

    def adopt_version(self, version: int) -> None:
        """Takes a version whose weights the learner wrote in place, into memory it shares with this worker."""
        self._generator.adopt_version(version)

    def canary(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) of fixed sequences under the worker's weights, nats."""
        return self._generator.logprobs(prompts, responses)
