"""What the distillation loop asks of a teacher, a student and their data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor
from torch.nn import Parameter

from policies.sequences import TokenIds
from rlhf.config.distill import Shrink

Exchange = tuple[TokenIds, TokenIds]
"""Tokens that are given and tokens that are learned."""
Item = TypeVar("Item")
Metrics = dict[str, float]


class Lesson(Protocol):
    """One teacher, one student, and what the one learns from the other."""

    def cut(self, shrink: Shrink) -> None:
        """Makes the student smaller; what trained before is another object afterwards."""
        ...

    def trainable(self) -> list[tuple[str, Parameter]]:
        """The student's parameters, with gradients let in."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """The student's weights; they share memory with it."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites the student's weights."""
        ...

    def next(self, count: int) -> Sequence[Exchange]:
        """The next examples of the training data."""
        ...

    def units(self, examples: Sequence[Exchange]) -> int:
        """What the loss is a mean over: learned tokens, or texts."""
        ...

    def loss_sum(self, examples: Sequence[Exchange]) -> Tensor:
        """Loss of one micro-batch, summed over its units."""
        ...

    def evaluate(self) -> Metrics:
        """Held-out measures of the student; empty without held-out data."""
        ...

    def state(self) -> dict[str, Any]:
        """Position in the training data."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues at a position."""
        ...

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """Writes the student."""
        ...


class ExampleStream:
    """Endless examples from a fixed list, every epoch in an order of its own that the seed decides."""

    def __init__(self, examples: Sequence[Exchange], *, seed: int) -> None:
        self._examples, self._seed, self._position = examples, seed, 0

    def next(self, count: int) -> list[Exchange]:
        """The next `count` examples."""
        places = range(self._position, self._position + count)
        self._position += count
        size = len(self._examples)
        orders = {
            epoch: np.random.default_rng([self._seed, epoch]).permutation(size) for epoch in {p // size for p in places}
        }
        return [self._examples[orders[place // size][place % size]] for place in places]

    def state_dict(self) -> dict[str, int]:
        """Position in the examples, over all epochs."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continues where `state_dict` was taken."""
        self._position = state["position"]
