"""The rollout role on one device: a generator that answers only for the version it was asked for.

Owns the checks around an engine. A plain class: the process that hosts it, and the calls that reach it, belong to the
caller.
"""

from collections.abc import Sequence

from torch import Tensor

from policies.causal import CausalPolicy
from rollout.flat_bucket import Manifest
from rollout.generation import Generator
from rollout.types import Completion, PerToken, Prompt, TokenIds
from rollout.weight_receiver import WeightReceiver
from rollout.weight_sync import Ack, CanaryMismatchError, StaleWeightsError, WeightUpdate, max_abs_difference

_CHECKED_RESPONSES = 2
"""Responses that the engine's own forward pass scores again after every update."""


class RolloutWorker:
    """One generator and the guard of its version.

    Args:
        generator: The engine.
        policy: What the engine samples from, where it lives in this process (see `WeightReceiver`).
        decode_tolerance: Largest allowed difference in nats between what the engine reports for its samples and its
            plain forward pass over them, which uses no cache and no merged copy; None checks nothing.
    """

    def __init__(
        self, generator: Generator, policy: CausalPolicy | None = None, *, decode_tolerance: float | None = None
    ) -> None:
        self._generator = generator
        self._receiver = WeightReceiver(generator, policy)
        self._decode_tolerance = decode_tolerance
        self._checked_version: int | None = None

    @property
    def version(self) -> int:
        """Number of the policy it samples from."""
        return self._generator.version

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int, expected_version: int
    ) -> list[Completion]:
        """Completions of the jobs, in order, all of the expected version.

        Raises:
            StaleWeightsError: if the worker's weights have another version, or only a part of one.
            CanaryMismatchError: if the engine does not decode with the weights it holds.
            ValueError: if a prompt doesn't fit.
        """
        self._receiver.require_whole()
        if self.version != expected_version:
            raise StaleWeightsError(
                f"rollout worker holds policy version {self.version}, asked was {expected_version}; send it that "
                "version first"
            )
        completions = self._generator.generate(prompts, response_indices, seed=seed, step=step)
        if self._decode_tolerance is not None and self._checked_version != self.version:
            self._require_own_logprobs(prompts, completions, self._decode_tolerance)
            self._checked_version = self.version
        return completions

    def apply_update(self, update: WeightUpdate) -> Ack:
        """See `WeightReceiver.receive`."""
        return self._receiver.receive(update)

    def apply_flat(self, manifest: Manifest, buffer: Tensor) -> Ack:
        """See `WeightReceiver.receive_flat`."""
        return self._receiver.receive_flat(manifest, buffer)

    def adopt_version(self, version: int) -> None:
        """Takes a version whose weights the learner wrote in place, into memory it shares with this worker."""
        self._generator.adopt_version(version)

    def canary(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) of fixed sequences under the worker's weights, nats."""
        return self._generator.logprobs(prompts, responses)

    def _require_own_logprobs(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], tolerance: float
    ) -> None:
        """Finds a cache or a merged copy that an update has not reached: the canary's forward pass uses neither."""
        checked = completions[:_CHECKED_RESPONSES]
        own = self._generator.logprobs(
            [prompt.token_ids for prompt in prompts[: len(checked)]], [completion.token_ids for completion in checked]
        )
        difference = max_abs_difference([completion.logprobs for completion in checked], own)
        if difference > tolerance:
            raise CanaryMismatchError(
                f"the engine reports log-probabilities that differ by {difference:.3g} nats from its own forward pass "
                f"at version {self.version}, allowed are {tolerance:g}; it decodes with a stale cache or a stale copy "
                "of the weights: choose another rollout.engine.kind, and report it"
            )
