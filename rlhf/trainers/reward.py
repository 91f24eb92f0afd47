"""`rlhf reward`: a reward model from ranked responses.

Owns the loop: comparisons in, optimizer steps, held-out accuracy, checkpoints, the scale, the final folder. The model
is `reward.model`, the loss `rlhf.algorithms.preference_losses`, what is told at the end `rlhf.reports.reward`.
"""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward.baselines import evaluate_baselines
from reward.demonstrations import encode_demonstrations
from reward.encoding import TokenIds
from reward.evaluation import PairEvaluation, evaluate_scores
from reward.interface import Scores
from reward.model import RewardModel
from reward.normalization import Normalizer
from reward.preference_batch import (
    EncodedSet,
    collate,
    encode_comparisons,
    group_comparisons,
)
from reward.preferences import comparisons_from_rows
from reward.scoring import score_sequences
from rlhf.algorithms.preference_losses import ranked_pairs_loss
from rlhf.config import RewardConfig
from rlhf.data import load_rows
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.reports.page import write_report
from rlhf.reports.reward import print_outcome, reward_page, scored_examples
from rlhf.runtime.console import stages_announce
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.metrics import MetricLogger
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.training_run import open_training_run
from rlhf.runtime.training_state import (
    TrainingState,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
    with_owner,
)

Metrics = dict[str, float]

logger = logging.getLogger(__name__)

_FORWARDS_PER_MICRO_BATCH = 4
"""Responses of similar length share a forward pass; so many passes, padded each for itself, share a backward pass."""


def run(config: RewardConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, an ordinary classifier or PEFT folder with its scale, with summary and report.

    The model is that of the last step, not of the best evaluation: the held-out split stays unseen, so its accuracy is
    an honest estimate.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
    """
    inputs = RewardInputs(config)
    order = ComparisonOrder(len(inputs.train), config)
    with open_training_run(config, resume=resume, stage="reward", total_steps=order.steps) as run:
        trainer = RewardTrainer(config, inputs, order, run.folder, run.metrics)
        if run.checkpoint is not None:
            trainer.restore(run.checkpoint)
        summary = trainer.train()
        run.metrics.close(summary)
        path = run.folder.path
        write_report(path, reward_page(path, trainer.examples()))
        if stages_announce():
            print_outcome(path, summary)


class RewardInputs:
    """The data and the model of a run, ready to train.

    Attributes:
        model: The reward model, its head new unless `model.path` has one.
        train: Training comparisons.
        held_out: Held-out comparisons; empty without `data.eval`.
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
        train = self._comparisons(config, rows["train"], f"data.train={data.train}")
        held_out = (
            self._comparisons(config, rows["eval"], f"data.eval={data.eval}") if "eval" in rows else EncodedSet([], [])
        )
        self.train, self.held_out = train.comparisons, held_out.comparisons
        self.skipped = [*train.skipped, *held_out.skipped]
        self.reference, self.reference_source = self._reference(config, rows.get("normalize"))
        for line in self.skipped:
            logger.warning("skipped %s", line)

    def _comparisons(self, config: RewardConfig, rows: Sequence[dict[str, Any]], source: str) -> EncodedSet:
        bad_rows = config.data.on_bad_row
        found = comparisons_from_rows(
            rows,
            config.data.format,
            tokenizer=self.model.tokenizer,
            source=source,
            on_bad_row=bad_rows,
            seed=config.seed,
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


class RewardTrainer:
    """The state between steps: weights and moments; `step()` is the algorithm."""

    def __init__(
        self,
        config: RewardConfig,
        inputs: RewardInputs,
        order: ComparisonOrder,
        folder: RunFolder,
        metrics: MetricLogger,
    ) -> None:
        self._config, self._inputs, self._order, self._folder, self._metrics = config, inputs, order, folder, metrics
        self._model = inputs.model
        self._parameters = self._model.trainable()
        self._optimizer = build_optimizer(self._parameters, config.optimizer)
        self._schedule = build_schedule(config.optimizer, order.steps)
        self._forward_tokens = max(1, config.micro_batch_tokens // _FORWARDS_PER_MICRO_BATCH)
        self._steps_done = 0
        self._tokens = 0
        self._held_out_result: PairEvaluation | None = None

    def train(self) -> dict[str, Any]:
        """Steps to the end, fits the scale, writes the model; returns the summary."""
        while self._steps_done < self._order.steps:
            started = time.perf_counter()
            try:
                metrics = self.step()
            except NonFiniteLossError:
                # Weights and moments are those before the bad step, and the order needs no more than its number.
                self._save()
                raise
            self._steps_done += 1
            self._after_step(metrics, started)
        normalizer = Normalizer.fit(self._score(self._inputs.reference), source=self._inputs.reference_source)
        summary = self._summary(normalizer)
        about = {"stage": "reward", "started_from": self._config.model.path, "accuracy": summary["accuracy"]}
        self._model.save(self._folder.path / "model", normalizer=normalizer, metadata=about)
        return summary

    def step(self) -> Metrics:
        """One step on -E_x mean_{w > l} log sigmoid(r(x, y_w) - r(x, y_l)) (Ouyang et al. 2022, eq. 1).

        Each of the K responses to a prompt is read once, however many of the K-choose-2 pairs it is in.
        """
        comparisons = [self._inputs.train[index] for index in self._order.indices(self._steps_done)]
        totals: defaultdict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self._model.device))
        scored: list[Tensor] = []
        for part in group_comparisons(comparisons, self._config.micro_batch_tokens):
            batch = collate(part, self._model.device)
            scores = score_sequences(self._model, batch.sequences, token_budget=self._forward_tokens)
            loss, metrics = ranked_pairs_loss(
                scores, batch.winner_index, batch.loser_index, batch.group_of_pair, group_count=len(comparisons)
            )
            loss.backward()
            for name, value in {"loss": loss.detach(), **metrics}.items():
                totals[name] = totals[name] + value
            scored.append(scores.detach())
        self._tokens += sum(comparison.token_count for comparison in comparisons)
        every_score = torch.cat(scored)
        totals |= {"score_mean": every_score.mean(), "score_std": every_score.std(correction=0)}
        names = [f"rm/{name}" for name in totals]
        numbers = dict(zip(names, torch.stack(list(totals.values())).tolist(), strict=True))
        taken = optimizer_step(
            self._optimizer, self._config.optimizer, self._schedule, step=self._steps_done, loss=numbers["rm/loss"]
        )
        return numbers | {"rm/grad_norm": taken.grad_norm, "progress/lr": taken.learning_rate}

    def evaluate(self) -> PairEvaluation:
        """Held-out accuracy with interval, margin and loss, on raw scores."""
        comparisons = [encoded.comparison for encoded in self._inputs.held_out]
        return evaluate_scores(comparisons, self._score(self._held_out_sequences()), seed=self._config.seed)

    def examples(self) -> list[dict[str, Any]]:
        """The first held-out comparisons with their normalised scores, for the report."""
        normalizer = Normalizer.load(self._folder.path / "model")
        return scored_examples(self._inputs.held_out, lambda sequences: normalizer(self._score(sequences)))

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._model.load_weights(state.tensors_of("model"))
        load_optimizer_tensors(self._optimizer, self._parameters, state.tensors_of("optimizer"))
        self._tokens = int(state.values["tokens"])
        self._steps_done = state.step

    @torch.no_grad()
    def _score(self, sequences: Sequence[TokenIds]) -> Scores:
        budget = self._config.micro_batch_tokens
        return score_sequences(self._model, sequences, token_budget=budget).cpu().numpy()

    def _held_out_sequences(self) -> list[TokenIds]:
        return [sequence for comparison in self._inputs.held_out for sequence in comparison.sequences]

    def _after_step(self, metrics: Metrics, started: float) -> None:
        """Held-out accuracy and checkpoint where due, and the log line of the step that just ended."""
        config, trained = self._config, time.perf_counter()
        is_last = self._steps_done == self._order.steps
        if self._inputs.held_out and (is_last or self._steps_done % config.eval_every_steps == 0):
            self._held_out_result = self.evaluate()
            metrics |= _held_out_metrics(self._held_out_result)
            metrics["time/eval"] = time.perf_counter() - trained
        metrics |= {
            "time/step": time.perf_counter() - started,
            "time/update": trained - started,
            "perf/peak_memory_mib": peak_memory_mib(self._model.device),
            "progress/tokens": float(self._tokens),
            "progress/epoch": self._order.epochs_after(self._steps_done),
        }
        self._metrics.log(self._steps_done, metrics)
        if is_last or self._steps_done % config.checkpoint.every_steps == 0:
            self._save()

    def _save(self) -> None:
        tensors = {
            **with_owner("model", self._model.weights()),
            **with_owner("optimizer", optimizer_tensors(self._optimizer, self._parameters)),
        }
        state = TrainingState(self._steps_done, tensors, {"tokens": self._tokens})
        save_checkpoint(self._folder.checkpoints_path, state, keep_last=self._config.checkpoint.keep_last)

    def _summary(self, normalizer: Normalizer) -> dict[str, Any]:
        rows = self._folder.read_metrics()
        held_out: dict[str, Any] = dict.fromkeys(_HELD_OUT_FIELDS)
        if self._inputs.held_out:
            held_out = asdict(self._held_out_result or self.evaluate())  # A run resumed at its end took no step.
        return held_out | {
            "baselines": self._baselines(),
            "normalizer": asdict(normalizer),
            "weights": "last step",
            "steps": self._steps_done,
            "tokens": self._tokens,
            "train_comparisons": len(self._inputs.train),
            "parameters": sum(parameter.numel() for _, parameter in self._parameters),
            "skipped_rows": len(self._inputs.skipped),
            "seconds": math.fsum(float(str(row["time/step"])) for row in rows),
        }

    def _baselines(self) -> dict[str, dict[str, float]]:
        """Accuracy, with its interval, of the trivial models on the held-out split."""
        if not self._inputs.held_out:
            return {}
        train, held_out = (
            [encoded.comparison for encoded in comparisons]
            for comparisons in (self._inputs.train, self._inputs.held_out)
        )
        fields = ("accuracy", "accuracy_low", "accuracy_high")
        found = evaluate_baselines(train, held_out, seed=self._config.seed)
        return {name: {field: getattr(result, field) for field in fields} for name, result in found.items()}


_HELD_OUT_FIELDS = tuple(PairEvaluation.__dataclass_fields__)


def _held_out_metrics(result: PairEvaluation) -> Metrics:
    return {
        "rm/eval_accuracy": result.accuracy,
        "rm/eval_accuracy_low": result.accuracy_low,
        "rm/eval_accuracy_high": result.accuracy_high,
        "rm/eval_margin": result.margin,
        "rm/eval_loss": result.loss,
    }
