"""Which weights a reward model keeps, and on which held-out prompts that is decided.

Owns the two halves of the held-out split and the best weights so far. When evaluations happen, and what they measure,
is the trainer's and `reward.evaluation`'s business.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor

from reward.evaluation import PairEvaluation, prompt_clusters
from reward.preferences import Comparison
from rlhf.runtime.run_folder import Row
from rlhf.runtime.training_state import TrainingState, with_owner

Rule = Literal["last", "lowest_loss", "highest_accuracy"]

_SPLIT_SEED = 0
"""The halves do not depend on the run's seed: all members of an ensemble are chosen on the same prompts."""


def halves(held_out: Sequence[Comparison]) -> tuple[list[int], list[int]]:
    """Places of the comparisons to choose on, and of those to report; all comparisons of a prompt are on one side.

    Raises:
        ValueError: there is one prompt only.
    """
    clusters = prompt_clusters(held_out)
    count = int(clusters.max()) + 1
    if count < 2:
        raise ValueError(
            "data.eval has one prompt, and choosing needs a second one to report on; add rows, or set weights=last and "
            "calibrate=none"
        )
    chosen = np.random.default_rng(_SPLIT_SEED).permutation(count)[: count // 2]
    chooses = np.isin(clusters, chosen)
    return np.flatnonzero(chooses).tolist(), np.flatnonzero(~chooses).tolist()


class BestWeights:
    """The trained tensors of the best evaluation so far, in main memory; of equal ones, the first.

    Args:
        rule: What is best. With `last` nothing is kept.

    Attributes:
        step: Step of the best evaluation; None before the first, and with `last`.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule: Rule = rule
        self.step: int | None = None
        self._value = float("inf")
        self._tensors: dict[str, Tensor] = {}

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Names and tensors of the best weights; empty before the first evaluation, and with `last`."""
        return self._tensors

    def consider(self, step: int, result: PairEvaluation, weights: Mapping[str, Tensor]) -> None:
        """Copies the weights if their evaluation is the best so far."""
        if self._rule == "last":
            return
        value = result.loss if self._rule == "lowest_loss" else -result.accuracy
        if value < self._value:
            self.step, self._value = step, value
            self._tensors = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint has to hold: tensors and values."""
        if self.step is None:
            return {}, {}
        return with_owner("best", self._tensors), {"best_step": self.step, "best_value": self._value}

    def restore(self, state: TrainingState) -> None:
        """Continues from what `state` gave."""
        if "best_step" in state.values:
            self.step, self._value = int(state.values["best_step"]), float(state.values["best_value"])
            self._tensors = dict(state.tensors_of("best"))


def selection_summary(rule: Rule, kept_step: int, evaluations: Sequence[Row]) -> dict[str, Any]:
    """What the evaluations over training say, as plain values: the best by each rule, the last, and what was kept.

    Args:
        rule: `weights` of the configuration.
        kept_step: Step whose weights were kept.
        evaluations: Rows of metrics.jsonl that have held-out numbers, oldest first; may be none.
    """
    found: list[dict[str, Any]] = [
        {"step": row["step"], "loss": row["rm/eval_loss"], "accuracy": row["rm/eval_accuracy"]} for row in evaluations
    ]
    if not found:
        return {"rule": rule, "kept_step": kept_step}
    return {
        "rule": rule,
        "kept_step": kept_step,
        "lowest_loss": min(found, key=lambda one: one["loss"]),
        "highest_accuracy": max(found, key=lambda one: one["accuracy"]),
        "last": found[-1],
        "evaluations": len(found),
    }
