"""The numbers of compared methods, from the run folders of their classifications."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from reward.intervals import MeanDifference, mean_difference
from rlhf.classification.stage import PREDICTIONS_FILE
from rlhf.config import MethodsConfig
from rlhf.runtime import json_lines
from rlhf.runtime.run_folder import RunFiles

HOULSBY_SHARE, HOULSBY_POINTS = 0.036, 0.004
"""Houlsby et al. 2019: within 0.4 points of full tuning with 3.6 % of the parameters."""


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method over its seeds.

    Attributes:
        name: Of the method.
        accuracy: Mean over seeds.
        lowest: Accuracy of the worst seed.
        highest: Accuracy of the best seed.
        difference: Mean accuracy minus the reference's, on the same held-out texts and with the same seeds; the 95 %
            interval is a paired bootstrap over texts, so it speaks of other texts, not of other seeds.
        trained_share: Trained parameters over all.
        trained_parameters: How many train.
        seconds: Of training, mean over seeds.
        peak_memory_mib: Of the process, mean over seeds.
        accuracies: Of each seed.
    """

    name: str
    accuracy: float
    lowest: float
    highest: float
    difference: MeanDifference
    trained_share: float
    trained_parameters: int
    seconds: float
    peak_memory_mib: float
    accuracies: Sequence[float]


def method_rows(config: MethodsConfig, folders: Mapping[tuple[str, int], RunFiles]) -> list[MethodRow]:
    """One row for each method, in the order of the configuration.

    Raises:
        ValueError: runs were measured on different rows.
    """
    outcomes = {key: _outcomes(files) for key, files in folders.items()}
    _require_same_rows(config, outcomes)
    correct = {
        method.name: np.array([list(outcomes[method.name, seed].values()) for seed in config.seeds], np.float64)
        for method in config.methods
    }
    reference = correct[config.reference]
    return [
        _row(config, name, own, reference, [folders[name, seed].read_summary() for seed in config.seeds])
        for name, own in correct.items()
    ]


def summary_of(config: MethodsConfig, rows: Sequence[MethodRow]) -> dict[str, object]:
    """The table as plain values."""
    return {
        "reference": config.reference,
        "seeds": list(config.seeds),
        "methods": {row.name: asdict(row) for row in rows},
        "meets_adapter_result": [row.name for row in rows if meets_adapter_result(row)],
    }


def meets_adapter_result(row: MethodRow) -> bool:
    """Whether a method has the headline result of Houlsby et al. 2019, by its mean over seeds."""
    return row.trained_share <= HOULSBY_SHARE and row.difference.value >= -HOULSBY_POINTS


def _outcomes(files: RunFiles) -> dict[int, bool]:
    """Of every held-out text, by its row, whether it got its label."""
    rows = json_lines.read_objects(files.path / PREDICTIONS_FILE)
    return {cast(int, row["row"]): row["label"] == row["predicted"] for row in rows}


def _require_same_rows(config: MethodsConfig, outcomes: Mapping[tuple[str, int], Mapping[int, bool]]) -> None:
    """With `on_bad_row=skip` a method that needs more tokens for a text leaves out rows that others keep."""
    (first, expected), *others = ((key, list(found)) for key, found in outcomes.items())
    for (name, seed), rows in others:
        if rows != expected:
            raise ValueError(
                f"methods: {name} with seed {seed} labelled {len(rows)} held-out rows, {first[0]} with seed {first[1]} "
                f"{len(expected)}, and not the same ones, so they cannot be compared; raise "
                f"classify.max_tokens={config.classify.max_tokens}, or leave long rows out of classify.data.eval"
            )


def _row(
    config: MethodsConfig,
    name: str,
    own: NDArray[np.float64],
    reference: NDArray[np.float64],
    summaries: Sequence[Mapping[str, object]],
) -> MethodRow:
    differences = (own - reference).mean(0)
    accuracies = own.mean(1).tolist()

    def mean(key: str) -> float:
        return float(np.mean([cast(Any, summary[key]) for summary in summaries]))

    return MethodRow(
        name=name,
        accuracy=float(own.mean()),
        lowest=min(accuracies),
        highest=max(accuracies),
        difference=mean_difference(
            differences, np.ones(len(differences)), np.arange(len(differences)), seed=config.seed
        ),
        trained_share=mean("trained_share"),
        trained_parameters=round(mean("trained_parameters")),
        seconds=mean("seconds"),
        peak_memory_mib=mean("peak_memory_mib"),
        accuracies=accuracies,
    )
