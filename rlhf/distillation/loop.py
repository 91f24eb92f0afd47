"""The loop of a distillation: cut, measure, recover, measure again; one phase for each cut.

Owns steps, phases and the state of a checkpoint. Teacher, student and data are a `Lesson`.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch

from policies.sequences import micro_batches
from rlhf.config import DistillConfig
from rlhf.config.distill import ShrunkStudent
from rlhf.distillation.lesson import Exchange, Lesson, Metrics
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.runtime.kept_checkpoints import BEST_MODEL, KeptCheckpoints
from rlhf.runtime.training_run import TrainingRun
from rlhf.runtime.training_state import TrainingState, load_optimizer_tensors, optimizer_tensors, with_owner


class Distillation:
    """The state between steps: the student, its moments, the phase, and what was measured around each cut.

    Attributes:
        steps_done: Optimizer steps, over all phases.
        measured: For each phase that has begun, the student's size and held-out measures before and after its training.
    """

    def __init__(self, config: DistillConfig, lesson: Lesson, run: TrainingRun) -> None:
        self._config, self._lesson, self._run = config, lesson, run
        self._total = sum(config.phase_steps)
        self._checkpoints = KeptCheckpoints(run.folder, config.checkpoint, self._total)
        self.steps_done = 0
        self.measured: list[dict[str, Any]] = []
        self._begun = 0

    def train(self) -> None:
        """All phases to their end."""
        if self._begun == 0:
            self._begin_phase()
        while self.steps_done < self._total:
            if self.steps_done == self._end_of(self._begun):
                self._begin_phase()
            started, position = time.perf_counter(), self._lesson.state()
            try:
                metrics = self.step()
            except NonFiniteLossError:
                # Weights and moments are those before the bad step; the data must stand there, too.
                self._lesson.restore(position)
                self._save()
                raise
            self._after_step(metrics, started)

    def step(self) -> Metrics:
        """One optimizer step on the mean loss over the units of its examples."""
        examples = self._lesson.next(self._config.sequences_per_step)
        count = self._lesson.units(examples)
        total = torch.zeros((), dtype=torch.float64)
        for group in self._micro_batches(examples):
            part = self._lesson.loss_sum([examples[index] for index in group]) / count
            part.backward()
            total += part.detach().double().cpu()
        taken = optimizer_step(
            self._optimizer,
            self._config.optimizer,
            self._schedule,
            self._parameters,
            step=self.steps_done - self._start_of(self._begun),
            loss=float(total),
        )
        self.steps_done += 1
        return {"loss/train": float(total), "policy/grad_norm": taken.grad_norm, "progress/lr": taken.learning_rate}

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint: the cuts are made again, for their shapes, and the weights put in."""
        for _ in range(int(state.values["phases_begun"])):
            self._cut(self._begun)
            self._begun += 1
        self._lesson.load_weights(state.tensors_of("student"))
        self._open_optimizer()
        load_optimizer_tensors(self._optimizer, self._parameters, state.tensors_of("optimizer"))
        self._lesson.restore(state.values["data"])
        self.measured = list(state.values["measured"])
        self.steps_done = state.step

    def save_model(self, folder: str) -> None:
        """Writes the student as run_dir/<folder>."""
        metadata = {"stage": "distill", "started_from": self._config.teacher.path}
        self._lesson.save(self._run.folder.path / folder, metadata)

    def summary(self) -> dict[str, Any]:
        """Steps taken and, where one is kept, the best of them."""
        return {"steps": self.steps_done, **self._checkpoints.summary()}

    def _begin_phase(self) -> None:
        self._cut(self._begun)
        self._begun += 1
        self._open_optimizer()
        size = sum(parameter.numel() for _, parameter in self._parameters)
        self.measured.append({"parameters": size, "before": self._lesson.evaluate(), "after": {}})

    def _cut(self, phase: int) -> None:
        if isinstance(self._config.student, ShrunkStudent):
            self._lesson.cut(self._config.student.cuts[phase])

    def _open_optimizer(self) -> None:
        self._parameters = self._lesson.trainable()
        self._optimizer = build_optimizer(self._parameters, self._config.optimizer)
        self._schedule = build_schedule(self._config.optimizer, self._config.phase_steps[self._begun - 1])

    def _after_step(self, metrics: Metrics, started: float) -> None:
        trained = time.perf_counter()
        ends_phase = self.steps_done == self._end_of(self._begun)
        if ends_phase or self.steps_done % self._config.eval_every_steps == 0:
            found = self._lesson.evaluate()
            if ends_phase:
                self.measured[-1]["after"] = found
            metrics |= found | ({"time/eval": time.perf_counter() - trained} if found else {})
        metrics["time/step"] = time.perf_counter() - started
        self._run.metrics.log(self.steps_done, metrics)
        self._checkpoints.note(self.steps_done, metrics)
        if self._checkpoints.is_due(self.steps_done):
            if self._checkpoints.best_step == self.steps_done:
                self.save_model(BEST_MODEL)
            self._save()

    def _save(self) -> None:
        tensors = {
            **with_owner("student", self._lesson.weights()),
            **with_owner("optimizer", optimizer_tensors(self._optimizer, self._parameters)),
        }
        values = {"data": self._lesson.state(), "phases_begun": self._begun, "measured": self.measured}
        self._checkpoints.save(TrainingState(self.steps_done, tensors, values))

    def _micro_batches(self, examples: Sequence[Exchange]) -> list[list[int]]:
        lengths = [len(given) + len(learned) for given, learned in examples]
        return micro_batches(lengths, self._config.micro_batch_tokens)

    def _start_of(self, phase: int) -> int:
        """First step of the phase that is the `phase`-th from 1."""
        return sum(self._config.phase_steps[: phase - 1])

    def _end_of(self, phase: int) -> int:
        return sum(self._config.phase_steps[:phase])
