"""The scale of a reward model: (score - mean) / std, so that reference responses score 0 on average with spread 1.

A ranking loss leaves the offset of the scores open (Ouyang et al. 2022, section 3.5), and PPO needs it fixed. Owns the
statistics and their file beside the model; which responses they come from is decided by whoever trains.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NORMALIZER_FILE = "reward_normalizer.json"


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Statistics of the raw scores of some reference responses.

    Attributes:
        mean: Raw score that becomes 0.
        std: Raw distance that becomes 1.
        count: Responses the statistics come from.
        source: Where those responses came from, for people.
    """

    mean: float
    std: float
    count: int
    source: str

    @classmethod
    def fit(cls, scores: NDArray[np.floating[Any]], *, source: str) -> "Normalizer":
        """Mean and (biased) standard deviation of raw scores.

        Raises:
            ValueError: if there are fewer than two scores, one is not finite, or all are equal.
        """
        values = np.asarray(scores, dtype=np.float64)
        if values.size < 2 or not np.isfinite(values).all():
            raise ValueError(
                f"{source}: {values.size} scores; normalisation needs at least 2, all finite: check the rows"
            )
        mean, std = float(values.mean()), float(values.std())
        if not std > 1e-12 * max(1.0, abs(mean)):
            raise ValueError(
                f"{source}: all {values.size} scores are {mean:.6g}; a constant reward teaches nothing: train longer"
            )
        return cls(mean=mean, std=std, count=int(values.size), source=source)

    def __call__(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Normalised scores, float32."""
        return ((np.asarray(scores, dtype=np.float64) - self.mean) / self.std).astype(np.float32)

    def save(self, folder: str | Path) -> None:
        """Writes `reward_normalizer.json` into an existing model folder."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        (Path(folder) / NORMALIZER_FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Normalizer":
        """Reads what `save` wrote.

        Raises:
            ValueError: if the folder holds none, or it is damaged.
        """
        file = Path(folder) / NORMALIZER_FILE
        if not file.is_file():
            raise ValueError(
                f"reward model {str(folder)!r} has no {NORMALIZER_FILE}, so its scale is unknown; train it with "
                "`rlhf reward`, or take raw scores with normalization=none"
            )
        try:
            normalizer = cls(**json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); write it anew with `rlhf reward`") from error
        if not (math.isfinite(normalizer.mean) and normalizer.std > 0):
            raise ValueError(
                f"{file}: mean={normalizer.mean}, std={normalizer.std}; std must be above 0: run `rlhf reward` again"
            )
        return normalizer


IDENTITY = Normalizer(mean=0.0, std=1.0, count=0, source="none")
"""Leaves scores as they are."""
