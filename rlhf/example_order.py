"""In which order examples are trained on: endless permutations, a function of seed and epoch alone."""

import math
from collections.abc import Sequence

import numpy as np


def example_order(lengths: Sequence[int], *, epochs: float, examples_per_step: int, seed: int) -> list[int]:
    """ceil(epochs * N) indices of N examples: a permutation for each epoch, a function of seed and epoch alone.

    Within an optimizer step, examples stand by length: the step's gradient does not depend on their order, and
    micro-batches of similar lengths need less padding.
    """
    order = shuffled(len(lengths), math.ceil(epochs * len(lengths)), seed=seed)
    steps = [order[start : start + examples_per_step] for start in range(0, len(order), examples_per_step)]
    return [index for step in steps for index in sorted(step, key=lambda index: lengths[index])]


def shuffled(count: int, total: int, *, seed: int, stream: Sequence[int] = ()) -> list[int]:
    """The first `total` of endless permutations of 0 .. count - 1, each a function of seed, its number and `stream`."""
    epochs = range(math.ceil(total / count))
    permutations = [np.random.default_rng([seed, epoch, *stream]).permutation(count) for epoch in epochs]
    order: list[int] = np.concatenate(permutations)[:total].tolist()
    return order
