"""Configuration of `rlhf methods`: one classification task under several ways of tuning."""

from typing import Self

from pydantic import Field, model_validator

from policies.config import FullTuning, StrictModel, Tuning
from rlhf.config.classify import ClassifyMethod, ClassifySettings
from rlhf.config.shared import StageConfig


class ComparedMethod(StrictModel):
    """One row of the table: what differs from `classify`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the row, and of its run folders."""
    tuning: Tuning = FullTuning()
    """What trains."""
    method: ClassifyMethod | None = None
    """How texts are labelled; null is `classify.method`."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; null is `classify.optimizer.learning_rate`."""
    epochs: float | None = Field(default=None, ge=0)
    """Passes over the training rows; null is `classify.epochs`."""


class MethodsConfig(StageConfig):
    """`rlhf methods`: ways of tuning side by side; `seed` decides the bootstrap of the differences."""

    classify: ClassifySettings
    """The task and the base settings; its `model.tuning` is replaced by that of each method."""
    methods: tuple[ComparedMethod, ...] = Field(min_length=1)
    """The rows of the table."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Each method runs once with each."""
    reference: str = "full"
    """Method that the others are measured against."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"methods: the names {names} are not all different; rename one")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={list(self.seeds)}: a seed stands there twice; name each once")
        if self.reference not in names:
            raise ValueError(f"reference={self.reference!r} is none of the methods; allowed are {names}")
        return self
