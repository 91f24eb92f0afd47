"""The scores of a sequence of tasks as matrices, and what they say of each way; plain values for summary.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from rlhf.algorithms.forgetting import average_score, backward_transfer, forgetting


@dataclass(frozen=True, slots=True)
class Known:
    """What a model knows at one moment.

    Attributes:
        scores: Accuracy on each task, by name.
        perplexity: On held-out pretraining text; None without any.
    """

    scores: Mapping[str, float]
    perplexity: float | None


@dataclass(frozen=True, slots=True)
class WayRow:
    """One way over its seeds; means, and all seeds in a row where the name is in the plural.

    Attributes:
        name: Of the way.
        matrix: R[i][j], accuracy on task j after training on tasks 0 .. i.
        average: Accuracy over all tasks at the end.
        forgetting: See `rlhf.algorithms.forgetting.forgetting`.
        backward_transfer: See `rlhf.algorithms.forgetting.backward_transfer`.
        perplexities: Mean over seeds, after each task; empty without text.
        perplexity_drift: Last perplexity over that of the start, less 1; None without text.
        averages: Of each seed.
        forgettings: Of each seed.
        seconds: Of training, mean over seeds.
    """

    name: str
    matrix: Sequence[Sequence[float]]
    average: float
    forgetting: float
    backward_transfer: float
    perplexities: Sequence[float]
    perplexity_drift: float | None
    averages: Sequence[float]
    forgettings: Sequence[float]
    seconds: float


def way_row(
    name: str, start: Known, seeds: Sequence[Sequence[Known]], tasks: Sequence[str], *, seconds: float
) -> WayRow:
    """The row of one way.

    Args:
        name: Of the way.
        start: Before anything was learned.
        seeds: For each seed, what was known after each task.
        tasks: Names, in the order of learning.
        seconds: Of training, mean over seeds.
    """
    matrices = torch.tensor([[[known.scores[task] for task in tasks] for known in seed] for seed in seeds])
    averages, lost = [average_score(matrix) for matrix in matrices], [forgetting(matrix) for matrix in matrices]
    has_text = start.perplexity is not None
    texts = [[known.perplexity or 0.0 for known in seed] for seed in seeds] if has_text else []
    perplexities = torch.tensor(texts, dtype=torch.float64).mean(0).tolist() if has_text else []
    return WayRow(
        name=name,
        matrix=matrices.mean(0).tolist(),
        average=_mean(averages),
        forgetting=_mean(lost),
        backward_transfer=_mean([backward_transfer(matrix) for matrix in matrices]),
        perplexities=perplexities,
        perplexity_drift=perplexities[-1] / start.perplexity - 1.0 if start.perplexity is not None else None,
        averages=averages,
        forgettings=lost,
        seconds=seconds,
    )


def summary_of(
    tasks: Sequence[str], start: Known, rows: Sequence[WayRow], seeds: Sequence[int], seconds: float
) -> dict[str, object]:
    """The comparison as plain values."""
    return {
        "tasks": list(tasks),
        "seeds": list(seeds),
        "start": asdict(start),
        "task_sequence": {row.name: asdict(row) for row in rows},
        "seconds": seconds,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
