"""The scale of a reward model: (score - mean) / std, so that reference responses score 0 on average with spread 1.

A ranking loss leaves the offset of the scores open (Ouyang et al. 2022, section 3.5), and PPO needs it fixed. Owns the
statistics and their file beside the model; which responses they come from is decided by whoever trains.
"""

import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

NORMALIZER_FILE = "reward_normalizer.json"

Normalization = Literal["stored", "logits", "none"]


@dataclass(frozen=True, slots=True)
class Normalizer:
    """Statistics of the raw scores of some reference responses.

    Attributes:
        mean: Raw score that becomes 0.
        std: Raw distance that becomes 1.
        count: Responses the statistics come from.
        source: Where those responses came from, for people.
        temperature: Raw distance whose sigmoid is the probability that people agree, if it was fitted
            (`reward.calibration.fit_temperature`).
    """

    mean: float
    std: float
    count: int
    source: str
    temperature: float | None = None

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

    def in_logits(self) -> "Normalizer":
        """The scale (score - mean) / temperature, on which a lead of d wins with probability sigmoid(d).

        Its spread differs from model to model, so the KL coefficient of PPO has to be found anew for each; with spread
        1 it carries over. That is why it is not the default.

        Raises:
            ValueError: if no temperature was fitted.
        """
        if self.temperature is None:
            raise ValueError(
                f"normalization=logits: the scale fitted on {self.source} has no temperature; train with "
                "`rlhf reward CONFIG calibrate=temperature`, or take normalization=stored"
            )
        return dataclasses.replace(self, std=self.temperature)

    @classmethod
    def of_model(cls, folder: str | Path, normalization: Normalization) -> "Normalizer":
        """The scale that a source asks for: see `reward.config.ModelSource.normalization`.

        Raises:
            ValueError: if the folder holds none, or none with a temperature where logits are asked for.
        """
        if normalization == "none":
            return IDENTITY
        stored = cls.load(folder)
        return stored if normalization == "stored" else stored.in_logits()

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
                f"reward model {str(folder)!r} has no {NORMALIZER_FILE}, so its scale is unknown; fit one on rows with "
                f"prompt and completion: `{fit_command(folder)}`, or take raw scores with normalization=none"
            )
        try:
            normalizer = cls(**json.loads(file.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{file} is damaged ({error}); write it anew: `{fit_command(folder)} replace=true`"
            ) from error
        distances = [distance for distance in (normalizer.std, normalizer.temperature) if distance is not None]
        if not (math.isfinite(normalizer.mean) and all(distance > 0 for distance in distances)):
            raise ValueError(
                f"{file}: mean={normalizer.mean}, std={normalizer.std}, temperature={normalizer.temperature}; std and "
                f"temperature must be above 0: write it anew with `{fit_command(folder)} replace=true`"
            )
        return normalizer


def fit_command(folder: str | Path) -> str:
    """The command that gives a reward model its scale; ROWS.jsonl is the user's to fill in."""
    command = f"rlhf normalize-reward model.path={shlex.quote(str(folder))} data.normalize=ROWS.jsonl"
    # What is no folder is a name on the hub, where nothing can be written.
    return command if Path(folder).is_dir() else f"{command} run_dir=FOLDER"


IDENTITY = Normalizer(mean=0.0, std=1.0, count=0, source="none")
"""Leaves scores as they are."""
