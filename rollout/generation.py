"""What a rollout engine promises, whichever library decodes.

Owns the `Generator` protocol and the expansion of prompts into jobs. Engines stand in one file each; `engines` builds
the one that a config names.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from rollout.types import Completion, PerToken, Prompt, TokenIds


class Generator(Protocol):
    """Samples responses from a policy whose weights it can exchange.

    A completion depends on weights, prompt, seed, step and response index only: not on the other prompts of the call,
    their order or the number of workers (up to float error where two tokens are equally likely to be next).
    """

    @property
    def version(self) -> int:
        """Number of the policy it samples from; every completion carries it."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], response_indices: Sequence[int], *, seed: int, step: int
    ) -> list[Completion]:
        """One completion for each pair of prompt and response index, in that order (see `repeat_prompts`).

        Raises:
            ValueError: if a prompt and the longest response don't fit into the model's context together.
        """
        ...

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Samples from these weights from now on. They must be all that trains, under the policy's names."""
        ...

    def adopt_version(self, version: int) -> None:
        """Takes a new version whose weights are in place already, because learner and sampler share memory."""
        ...

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) in nats of given responses at the sampling temperature, as the canary of an update."""
        ...


def repeat_prompts(prompts: Sequence[Prompt], responses_per_prompt: int) -> tuple[list[Prompt], list[int]]:
    """B = N * G jobs: each prompt G times in a row, beside the index of each response.

    Indices go on counting where a prompt occurs again (a stream that wraps around within one step), because equal
    prompt and index would mean equal noise and so the same response twice.

    Example: [p0, p1] with G = 2 gives [p0, p0, p1, p1] and [0, 1, 0, 1]; [p0, p0] gives [p0, p0, p0, p0] and [0, 1,
        2, 3].
    """
    seen: Counter[str] = Counter()
    repeated: list[Prompt] = []
    indices: list[int] = []
    for prompt in prompts:
        repeated += [prompt] * responses_per_prompt
        indices += range(seen[prompt.id], seen[prompt.id] + responses_per_prompt)
        seen[prompt.id] += responses_per_prompt
    return repeated, indices
