"""How a classifier does on held-out texts: accuracy with its interval, and which labels it confuses."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from reward.intervals import share_interval
from rlhf.classification.texts import LabelledText


@dataclass(frozen=True, slots=True)
class Outcome:
    """Held-out texts, labelled.

    Attributes:
        accuracy: Share of texts whose likeliest label is theirs.
        low: Lower end of its 95 % interval (Wilson).
        high: Upper end.
        majority: Accuracy of always saying the most frequent label.
        loss: Mean -log p(label), nats.
        confusion: (L, L) counts; row = label, column = prediction.
    """

    accuracy: float
    low: float
    high: float
    majority: float
    loss: float
    confusion: list[list[int]]

    @property
    def recalls(self) -> list[float | None]:
        """Share of each label's texts that are recognised; None for a label without texts."""
        return [row[index] / sum(row) if sum(row) else None for index, row in enumerate(self.confusion)]


def outcome_of(label_logprobs: Tensor, texts: Sequence[LabelledText]) -> Outcome:
    """The outcome of (N, L) log p(y | x) of texts with known labels."""
    labels = np.array([text.label for text in texts])
    predicted = label_logprobs.argmax(1).numpy()
    count = label_logprobs.shape[1]
    correct = (predicted == labels).astype(np.float64)
    low, high = share_interval(correct, np.ones(len(texts)), np.arange(len(texts)))
    confusion = np.zeros((count, count), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    chosen = label_logprobs.double().numpy()[np.arange(len(texts)), labels]
    majority = float(np.bincount(labels, minlength=count).max() / len(texts))
    return Outcome(float(correct.mean()), low, high, majority, -float(chosen.mean()), confusion.tolist())
