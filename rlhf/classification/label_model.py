"""What training and prediction ask of a classifier, whatever it is made of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.nn import Parameter

from policies.sequences import TokenIds
from rlhf.classification.texts import LabelledText

Encoded = tuple[TokenIds, ...]
"""One view of a text: its prompts, more than one where a view asks several questions."""


class LabelModel(Protocol):
    """Label log-probabilities of texts, in one or several views of each."""

    @property
    def views(self) -> int:
        """K, how many views of a text there are: patterns times draws of demonstrations."""
        ...

    def encode(self, text: LabelledText, view: int) -> Encoded:
        """The prompts of a text in one view."""
        ...

    def label_logprobs(self, inputs: Sequence[Encoded], view: int) -> Tensor:
        """(M, L) log p(y | x) in one view, nats, with gradients where they are enabled."""
        ...

    def priors(self, view: int) -> Tensor | None:
        """(C, L) log-probabilities of texts that say nothing, by which predictions are calibrated; None for none."""
        ...

    def trainable(self) -> list[tuple[str, Parameter]]:
        """What trains, with gradients let in."""
        ...

    def weights(self) -> Mapping[str, Tensor]:
        """What training changes; shares memory with the model."""
        ...

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites what `weights` returned."""
        ...

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """Writes what was trained into a run folder."""
        ...

    def describe(self) -> dict[str, object]:
        """What it asks and what the answers mean, for summary.json."""
        ...
