"""`rlhf reward`: a reward model from ranked responses.

Owns the loop: comparisons in, optimizer steps, held-out accuracy, checkpoints, the scale, the final folder. What it
starts from is `reward_inputs`, the loss and its gradient `reward_objective`; which weights are kept is
`reward_selection`, what is measured at the end `reward_outcome`, what is told of it `rlhf.reports.reward`.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reward.calibration import fit_temperature
from reward.encoding import TokenIds
from reward.evaluation import PairEvaluation, evaluate_scores, score_pairs
from reward.interface import Scores
from reward.normalization import Normalizer
from reward.preference_batch import EncodedComparison
from reward.preferences import Comparison
from reward.scoring import score_sequences
from rlhf.config import RewardConfig
from rlhf.gradient_sums import sum_gradients
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.reports.page import write_report
from rlhf.reports.reward import print_outcome, reward_page, scored_examples
from rlhf.row_shares import balance
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.kept_checkpoints import KeptCheckpoints
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.metrics import MetricLogger
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.terminal import stages_announce
from rlhf.runtime.training_run import follow, open_training_run
from rlhf.runtime.training_state import (
    TrainingState,
    load_optimizer_tensors,
    optimizer_tensors,
    with_owner,
)
from rlhf.stage_ranks import run_in_ranks
from rlhf.trainers.reward_ensemble import ensemble_summary, train_members
from rlhf.trainers.reward_inputs import ComparisonOrder, RewardInputs
from rlhf.trainers.reward_objective import RewardObjective
from rlhf.trainers.reward_outcome import NOTHING_HELD_OUT, held_out_summary
from rlhf.trainers.reward_selection import BestWeights, selection_summary

Metrics = dict[str, float]

logger = logging.getLogger(__name__)


def run(config: RewardConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, an ordinary classifier or PEFT folder with its scale, with summary and report.

    What is reported was measured on held-out comparisons that chose nothing: all of them, or with `weights` and
    `calibrate` the half that was kept aside. With `ensemble_members` above 1 the other members are trained first.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
        WorkerError: one of several ranks was lost.
    """
    if config.ensemble_members > 1:
        resume = train_members(config, run, resume=resume)
    run_in_ranks(train, config, resume=resume)


def train(config: RewardConfig, *, resume: bool, ranks: Ranks = ALONE) -> None:
    """`run` on one of several ranks; the first one owns the run folder and the terminal."""
    inputs = RewardInputs(config)
    ranks.require_same(f"the model in model.path={config.model.path}", lambda: inputs.model.fingerprint)
    order = ComparisonOrder(len(inputs.train), config)
    if not ranks.is_first:
        follower = RewardTrainer(config, inputs, order, None, MetricLogger([]), ranks=ranks)
        follow(follower, config.run_dir, resume=resume)
        return
    with open_training_run(config, resume=resume, stage="reward", total_steps=order.steps) as opened:
        trainer = RewardTrainer(config, inputs, order, opened.folder, opened.metrics, ranks=ranks)
        if opened.checkpoint is not None:
            trainer.restore(opened.checkpoint)
        summary = trainer.train()
        opened.metrics.close(summary)
        path = opened.folder.path
        write_report(path, reward_page(path, trainer.examples(path / "model")))
        if stages_announce():
            print_outcome(path, summary)


class RewardTrainer:
    """The state between steps: weights and moments; `step()` is the algorithm.

    Args:
        config: The run's configuration.
        inputs: Data and model.
        order: Which comparisons each step trains on.
        folder: Where checkpoints and the model go; None on ranks that leave that to the first.
        metrics: Where numbers go.
        ranks: Those that train together.
    """

    def __init__(
        self,
        config: RewardConfig,
        inputs: RewardInputs,
        order: ComparisonOrder,
        folder: RunFolder | None,
        metrics: MetricLogger,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._config, self._inputs, self._order, self._folder, self._metrics = config, inputs, order, folder, metrics
        self._model = inputs.model
        self._parameters = self._model.trainable()
        self._optimizer = build_optimizer(self._parameters, config.optimizer)
        self._schedule = build_schedule(config.optimizer, order.steps)
        self._objective = RewardObjective(self._model, config, inputs.train, ranks=ranks)
        self._steps_done = 0
        self._checkpoints = KeptCheckpoints(folder, config.checkpoint, order.steps)
        self._tokens = 0
        self._best = BestWeights(config.weights)

    def train(self) -> dict[str, Any]:
        """Steps to the end, fits the scale, writes the model; returns the summary, which only the first rank has."""
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
        if self._best.step is not None:
            self._model.load_weights(self._best.tensors)
        normalizer = self._fit_scale()
        measured = self._measured(normalizer)
        if self._folder is None:
            return {}
        summary = self._summary(self._folder, normalizer, measured)
        about = {"stage": "reward", "started_from": self._config.model.path, "accuracy": summary["accuracy"]}
        self._model.save(self._folder.path / "model", normalizer=normalizer, metadata=about)
        return summary

    def step(self) -> Metrics:
        """One optimizer step on the loss of `comparisons_per_step` comparisons (Ouyang et al. 2022, eq. 1)."""
        comparisons = [self._inputs.train[index] for index in self._order.indices(self._steps_done)]
        numbers = self._objective.backward(comparisons)
        sum_gradients([parameter for _, parameter in self._parameters], self._ranks)
        self._tokens += sum(comparison.token_count for comparison in comparisons)
        taken = optimizer_step(
            self._optimizer,
            self._config.optimizer,
            self._schedule,
            self._parameters,
            step=self._steps_done,
            loss=numbers["rm/loss"],
        )
        return numbers | {"rm/grad_norm": taken.grad_norm, "progress/lr": taken.learning_rate}

    def evaluate(self) -> PairEvaluation:
        """Held-out accuracy with interval, margin and loss, on raw scores, of the comparisons that may choose."""
        return evaluate_scores(*self._scored(self._inputs.chooses))

    def examples(self, model: Path) -> list[dict[str, Any]]:
        """The first reported comparisons with their scores on the saved model's scale; computed by this rank alone."""
        normalizer = Normalizer.load(model)
        return scored_examples(self._inputs.reports, lambda sequences: normalizer(self._score_alone(sequences)))

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._model.load_weights(state.tensors_of("model"))
        load_optimizer_tensors(self._optimizer, self._parameters, state.tensors_of("optimizer"))
        self._best.restore(state)
        self._tokens = int(state.values["tokens"])
        self._steps_done = state.step

    def _score(self, sequences: Sequence[TokenIds]) -> Scores:
        """(S,) raw scores; every rank computes its share and gets all."""
        if self._ranks.is_alone:
            return self._score_alone(sequences)
        places = balance([len(sequence) for sequence in sequences], self._ranks.count)[self._ranks.index]
        own = self._score_alone([sequences[place] for place in places]) if places else np.zeros(0, np.float32)
        rows = self._ranks.join_rows(dict(zip(places, own.reshape(-1, 1), strict=True)), [1] * len(sequences))
        return np.concatenate(rows)

    @torch.no_grad()
    def _score_alone(self, sequences: Sequence[TokenIds]) -> Scores:
        budget = self._config.micro_batch_tokens
        return score_sequences(self._model, sequences, token_budget=budget).cpu().numpy()

    def _scored(self, encoded: Sequence[EncodedComparison]) -> tuple[list[Comparison], Scores]:
        """Comparisons, and the raw scores of all their responses."""
        sequences = [sequence for comparison in encoded for sequence in comparison.sequences]
        return [comparison.comparison for comparison in encoded], self._score(sequences)

    def _fit_scale(self) -> Normalizer:
        """Mean and spread on the reference responses, and the temperature where it is asked for."""
        normalizer = Normalizer.fit(self._score(self._inputs.reference), source=self._inputs.reference_source)
        if self._config.calibrate == "none":
            return normalizer
        fitted = fit_temperature(score_pairs(*self._scored(self._inputs.chooses)))
        if fitted.at_bound:
            logger.warning("calibrate=temperature: no temperature fits these scores; %.4g is the bound", fitted.value)
        return replace(normalizer, temperature=fitted.value)

    def _after_step(self, metrics: Metrics, started: float) -> None:
        """Held-out accuracy and checkpoint where due, and the log line of the step that just ended."""
        config, trained = self._config, time.perf_counter()
        is_last = self._steps_done == self._order.steps
        if self._inputs.held_out and (is_last or self._steps_done % config.eval_every_steps == 0):
            result = self.evaluate()
            self._best.consider(self._steps_done, result, self._model.weights())
            metrics |= _held_out_metrics(result)
            metrics["time/eval"] = time.perf_counter() - trained
        metrics |= {
            "time/step": time.perf_counter() - started,
            "time/update": trained - started,
            "perf/peak_memory_mib": peak_memory_mib(self._model.device),
            "progress/tokens": float(self._tokens),
            "progress/epoch": self._order.epochs_after(self._steps_done),
        }
        self._metrics.log(self._steps_done, metrics)
        self._checkpoints.note(self._steps_done, metrics)
        if self._checkpoints.is_due(self._steps_done):
            self._save()

    def _save(self) -> None:
        if self._folder is None:
            return
        best_tensors, best_values = self._best.state()
        tensors = {
            **with_owner("model", self._model.weights()),
            **with_owner("optimizer", optimizer_tensors(self._optimizer, self._parameters)),
            **best_tensors,
        }
        state = TrainingState(self._steps_done, tensors, {"tokens": self._tokens, **best_values})
        self._checkpoints.save(state)

    def _summary(self, folder: RunFolder, normalizer: Normalizer, measured: Mapping[str, Any]) -> dict[str, Any]:
        rows, kept = folder.read_metrics(), self._best.step or self._steps_done
        evaluations = [row for row in rows if "rm/eval_loss" in row]
        return dict(measured) | {
            "selection": selection_summary(self._config.weights, kept, evaluations)
            | {
                "is_split": self._config.splits_held_out,
                "chooses": len(self._inputs.chooses),
                "reports": len(self._inputs.reports),
            },
            "normalizer": asdict(normalizer),
            "weights": "last step" if kept == self._steps_done else f"step {kept}",
            "steps": self._steps_done,
            "tokens": self._tokens,
            "train_comparisons": len(self._inputs.train),
            "parameters": sum(parameter.numel() for _, parameter in self._parameters),
            "skipped_rows": len(self._inputs.skipped),
            "seconds": math.fsum(float(str(row["time/step"])) for row in rows),
        }

    def _measured(self, normalizer: Normalizer) -> dict[str, Any]:
        if not self._inputs.held_out:
            return NOTHING_HELD_OUT
        comparisons, scores = self._scored(self._inputs.reports)
        train = [encoded.comparison for encoded in self._inputs.train]
        found = held_out_summary(train, comparisons, scores, normalizer, seed=self._config.seed)
        if self._config.ensemble_members > 1 and self._ranks.is_first:
            sequences = [sequence for encoded in self._inputs.reports for sequence in encoded.sequences]
            found["ensemble"] = ensemble_summary(self._config, comparisons, sequences, normalizer(scores))
        return found


def _held_out_metrics(result: PairEvaluation) -> Metrics:
    return {
        "rm/eval_accuracy": result.accuracy,
        "rm/eval_accuracy_low": result.accuracy_low,
        "rm/eval_accuracy_high": result.accuracy_high,
        "rm/eval_margin": result.margin,
        "rm/eval_loss": result.loss,
    }
