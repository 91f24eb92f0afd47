"""What `rlhf reward` trains on: comparisons from rows, the model with its head, and which comparisons a step takes.

Owns the reading of data and model, and the order of the comparisons. The loop is `rlhf.trainers.reward`.
"""

import logging
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from reward.demonstrations import encode_demonstrations
from reward.encoding import TokenIds
from reward.model import RewardModel
from reward.preference_batch import EncodedSet, encode_comparisons
from reward.preferences import comparisons_from_rows
from rlhf.config import RewardConfig
from rlhf.data import load_rows
from rlhf.trainers.reward_selection import halves

logger = logging.getLogger(__name__)

_HELD_OUT_SEED = 0
"""Which labelled texts meet in the held-out split does not depend on the run's seed: every seed sits the same exam."""


class RewardInputs:
    """The data and the model of a run, ready to train.

    Attributes:
        model: The reward model, its head new unless `model.path` has one.
        train: Training comparisons.
        held_out: Held-out comparisons; empty without `data.eval`.
        chooses: Those that are evaluated during training, and that weights and temperature are chosen on: all of them,
            or one half where something is chosen.
        reports: Those that the final numbers are about: all of them, or the other half.
        reference: Sequences whose mean score becomes 0.
        reference_source: Where those came from, for people.
        skipped: One line for each row that `on_bad_row=skip` left out.
    """

    def __init__(self, config: RewardConfig) -> None:
        data = config.data
        if data.eval is None and data.normalize is None:
            raise ValueError(
                "data.eval and data.normalize are both null, but the scores need responses to be normalised on; give "
                "held-out comparisons, or rows with `prompt` and `completion`"
            )
        rows = {
            name: load_rows(source, field=f"data.{name}")
            for name, source in (("train", data.train), ("eval", data.eval), ("normalize", data.normalize))
            if source is not None
        }
        self.model = RewardModel.new(config.model, seed=config.seed)
        self._max_tokens = min(config.max_tokens, self.model.context_tokens)
        train = self._comparisons(config, rows["train"], f"data.train={data.train}", seed=config.seed)
        held_out = EncodedSet([], [])
        if "eval" in rows:
            held_out = self._comparisons(config, rows["eval"], f"data.eval={data.eval}", seed=_HELD_OUT_SEED)
        self.train, self.held_out = train.comparisons, held_out.comparisons
        self.chooses, self.reports = self.held_out, self.held_out
        if config.splits_held_out:
            places = halves([encoded.comparison for encoded in self.held_out])
            self.chooses, self.reports = ([self.held_out[place] for place in side] for side in places)
        self.skipped = [*train.skipped, *held_out.skipped]
        self.reference, self.reference_source = self._reference(config, rows.get("normalize"))
        for line in self.skipped:
            logger.warning("skipped %s", line)

    def _comparisons(
        self, config: RewardConfig, rows: Sequence[dict[str, Any]], source: str, *, seed: int
    ) -> EncodedSet:
        bad_rows = config.data.on_bad_row
        found = comparisons_from_rows(
            rows,
            config.data.format,
            tokenizer=self.model.tokenizer,
            source=source,
            on_bad_row=bad_rows,
            seed=seed,
            chat_template=config.model.chat_template,
        )
        return encode_comparisons(
            found, self.model.tokenizer, max_tokens=self._max_tokens, source=source, on_bad_row=bad_rows
        )

    def _reference(self, config: RewardConfig, rows: Sequence[dict[str, Any]] | None) -> tuple[Sequence[TokenIds], str]:
        """The responses of `data.normalize`, or the preferred ones of the held-out split."""
        if rows is None:
            best = [c.sequences[index] for c in self.held_out for index in c.comparison.ranking[0]]
            return best, f"preferred responses of data.eval={config.data.eval}"
        source = f"data.normalize={config.data.normalize}"
        sequences, skipped = encode_demonstrations(
            rows,
            self.model.tokenizer,
            max_tokens=self._max_tokens,
            source=source,
            on_bad_row=config.data.on_bad_row,
            chat_template=config.model.chat_template,
        )
        self.skipped += skipped
        return sequences, source


class ComparisonOrder:
    """Which comparisons each step trains on: a function of seed and step alone, so that resuming needs no position.

    Every epoch is a fresh permutation; steps run on over the end of an epoch, and the last step may be smaller.

    Args:
        count: Number of comparisons.
        config: Reads `epochs`, `comparisons_per_step` and `seed`.
    """

    def __init__(self, count: int, config: RewardConfig) -> None:
        self._count, self._per_step, self._seed = count, config.comparisons_per_step, config.seed
        self._total = max(1, round(config.epochs * count))
        self.steps = math.ceil(self._total / self._per_step)
        self._permutation = cache(lambda epoch: np.random.default_rng([self._seed, epoch]).permutation(count))

    def indices(self, step: int) -> list[int]:
        """Indices of the comparisons of a step, counted from 0."""
        places = range(step * self._per_step, min((step + 1) * self._per_step, self._total))
        return [int(self._permutation(place // self._count)[place % self._count]) for place in places]

    def epochs_after(self, steps: int) -> float:
        """Passes over the comparisons after so many steps."""
        return min(steps * self._per_step, self._total) / self._count
