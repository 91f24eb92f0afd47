"""An ensemble of reward models: the same run with other seeds, and what its members say together.

Owns the order of the runs and the measurements of the whole. A member is an ordinary run of `rlhf reward` with a folder
of its own; the arithmetic of scoring is `reward.ensemble`.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from reward.encoding import TokenIds
from reward.ensemble import combine
from reward.evaluation import accuracy_difference, evaluate_scores, score_pairs
from reward.interface import Scores
from reward.model import RewardModel
from reward.normalization import Normalizer
from reward.preferences import Comparison
from reward.scoring import score_sequences
from reward.slices import by_quarter
from rlhf.config import RewardConfig
from rlhf.runtime.run_folder import RunFiles, refuse_existing_run

logger = logging.getLogger(__name__)


class TrainFn(Protocol):
    """Trains one reward model in `run_dir` of its configuration."""

    def __call__(self, config: RewardConfig, *, resume: bool) -> None:
        """Leaves a run folder with a model."""
        ...


def member_configs(config: RewardConfig) -> list[RewardConfig]:
    """The runs of all members but the first, which is the run itself."""
    return [
        config.model_copy(
            update={
                "run_dir": str(Path(config.run_dir) / f"member-{number}"),
                "seed": config.seed + number,
                "ensemble_members": 1,
            }
        )
        for number in range(1, config.ensemble_members)
    ]


def train_members(config: RewardConfig, train: TrainFn, *, resume: bool) -> bool:
    """Trains the members that are not done yet, one after the other, and says whether the run itself is to be resumed.

    They come first, so that the run's own summary and report can speak of all of them. With `resume`, a member that has
    a summary is done, one that has started is continued, and the others start.

    Raises:
        ValueError: without `resume`, where the run's folder or a member's holds a run.
    """
    members = member_configs(config)
    folders = [config.run_dir, *(member.run_dir for member in members)]
    if not resume:
        for folder in folders:
            refuse_existing_run(folder)
    elif not any(RunFiles(folder).holds_run() for folder in folders):
        return True  # Nothing has started, which is refused where the run's folder is opened.
    for number, member in enumerate(members, start=1):
        files = RunFiles(member.run_dir)
        if resume and files.read_summary():
            continue
        logger.info("member %d of %d: %s", number, len(members), member.run_dir)
        train(member, resume=resume and files.holds_run())
    return resume and RunFiles(config.run_dir).holds_run()


def ensemble_summary(
    config: RewardConfig, comparisons: Sequence[Comparison], sequences: Sequence[TokenIds], own: Scores
) -> dict[str, Any]:
    """What the members say together, as the plain values of summary.json.

    Args:
        config: The run's configuration.
        comparisons: Held-out comparisons that chose nothing.
        sequences: (S,) token ids of their responses.
        own: (S,) normalised scores of their responses by the run's own model.
    """
    folders = [str(Path(run.run_dir) / "model") for run in (config, *member_configs(config))]
    scores = np.stack([own, *(_scores_of(folder, sequences, config) for folder in folders[1:])])
    mean, disagreement = combine(scores, penalty=0.0)
    pairs = score_pairs(comparisons, mean)
    gaps = scores[:, pairs.winner].astype(np.float64) - scores[:, pairs.loser]
    return {
        **_accuracy(comparisons, mean),
        "lead": asdict(accuracy_difference(comparisons, mean, own, seed=config.seed)),
        "members": [
            {"path": folder, **_accuracy(comparisons, values)} for folder, values in zip(folders, scores, strict=True)
        ],
        "disagreement_mean": float(disagreement.mean()),
        "by_disagreement": [asdict(part) for part in by_quarter(pairs, gaps.std(axis=0))],
    }


@torch.no_grad()
def _scores_of(folder: str, sequences: Sequence[TokenIds], config: RewardConfig) -> Scores:
    """Normalised scores by another member, which is in memory for as long as this takes."""
    model = RewardModel.from_folder(folder, device=config.model.device, dtype=config.model.dtype)
    raw = score_sequences(model, sequences, token_budget=config.micro_batch_tokens)
    return Normalizer.load(folder)(raw.cpu().numpy())


def _accuracy(comparisons: Sequence[Comparison], scores: Scores) -> dict[str, float]:
    found = evaluate_scores(comparisons, scores)
    return {
        "accuracy": found.accuracy,
        "accuracy_low": found.accuracy_low,
        "accuracy_high": found.accuracy_high,
    }
