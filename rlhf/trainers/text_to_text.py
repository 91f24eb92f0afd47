"""`rlhf text-to-text`: an encoder-decoder learns to write targets, from spans of text or from demonstrations.

Owns the loop: pairs in, optimizer steps, held-out loss, checkpoints, the final folder, and the tasks asked at the end.
Pairs are `text_to_text_inputs`, the model `policies.encoder_decoder`, the step `rlhf.optimization`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf.config import TextToTextConfig
from rlhf.evaluation.task_scores import measure_tasks
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.runtime.kept_checkpoints import BEST_MODEL, KeptCheckpoints
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.training_run import TrainingRun, open_training_run
from rlhf.runtime.training_state import TrainingState, load_optimizer_tensors, optimizer_tensors, with_owner
from rlhf.text_to_text_answers import AnsweringEncoderDecoder
from rlhf.trainers.text_to_text_inputs import Pair, TextToTextInputs, corrupted, read_inputs

Metrics = dict[str, float]


def run(config: TextToTextConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, a Hugging Face folder or a PEFT adapter, with metrics, summary and report.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
    """
    inputs = read_inputs(config)
    with open_training_run(config, resume=resume, stage="text-to-text", total_steps=config.steps) as opened:
        trainer = TextToTextTrainer(config, inputs, opened)
        if opened.checkpoint is not None:
            trainer.restore(opened.checkpoint)
        trainer.train()
        trainer.save_model("model")
        summary = trainer.summary()
        opened.metrics.close(summary)
        path = opened.folder.path
        write_report(path, generic_training_page(path, f"Text to text: {path.name}"))
    print_closing(path, [_task_line(name, measures) for name, measures in summary.get("tasks", {}).items()])


class TextToTextTrainer:
    """The state between steps: weights, moments and how many steps are done."""

    def __init__(self, config: TextToTextConfig, inputs: TextToTextInputs, run: TrainingRun) -> None:
        self._config, self._inputs, self._run = config, inputs, run
        self._model = inputs.model
        self._parameters = self._model.trainable()
        self._optimizer = build_optimizer(self._parameters, config.optimizer)
        self._schedule = build_schedule(config.optimizer, config.steps)
        self._checkpoints = KeptCheckpoints(run.folder, config.checkpoint, config.steps)
        self._steps_done = self._tokens = 0
        self._eval_loss = math.nan
        self._epoch, self._permutation = -1, np.arange(0)

    def train(self) -> None:
        """Steps to the end."""
        while self._steps_done < self._config.steps:
            started, before = time.perf_counter(), self._tokens
            try:
                metrics = self.step()
            except NonFiniteLossError:
                self._save()
                raise
            self._steps_done += 1
            self._after_step(metrics, started, self._tokens - before)

    def step(self) -> Metrics:
        """One optimizer step; the loss is the mean over the target tokens of its examples."""
        config = self._config
        pairs = self._pairs_of(self._steps_done)
        count = sum(len(target) for _, target in pairs)
        loss = torch.zeros((), device=self._model.device)
        for group in _groups(pairs, config.micro_batch_examples):
            nll = self._nll_sum(group) / count
            nll.backward()
            loss += nll.detach()
        mean = loss.item()
        taken = optimizer_step(
            self._optimizer, config.optimizer, self._schedule, self._parameters, step=self._steps_done, loss=mean
        )
        self._tokens += sum(len(source) + len(target) for source, target in pairs)
        return {"loss/train": mean, "policy/grad_norm": taken.grad_norm, "progress/lr": taken.learning_rate}

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """Held-out cross-entropy and perplexity, mean over the target tokens."""
        held_out = self._inputs.held_out
        total = math.fsum(self._nll_sum(group).item() for group in _groups(held_out, self._config.micro_batch_examples))
        self._eval_loss = total / sum(len(target) for _, target in held_out)
        return {"eval/loss": self._eval_loss, "eval/perplexity": math.exp(self._eval_loss)}

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._model.load_weights(state.tensors_of("model"))
        load_optimizer_tensors(self._optimizer, self._parameters, state.tensors_of("optimizer"))
        self._eval_loss = float(state.values["eval_loss"])
        self._tokens = int(state.values["tokens"])
        self._steps_done = state.step

    def save_model(self, folder: str) -> None:
        """Writes run_dir/<folder>."""
        metadata = {"stage": "text-to-text", "started_from": self._config.model.path}
        self._model.save(self._run.folder.path / folder, metadata)

    def summary(self) -> dict[str, Any]:
        """What the run came to, with the tasks asked now."""
        rows = self._run.folder.read_metrics()
        has_held_out = math.isfinite(self._eval_loss)
        return {
            "steps": self._steps_done,
            "tokens": self._tokens,
            "train_loss": rows[-1]["loss/train"],
            "eval_loss": self._eval_loss if has_held_out else None,
            "perplexity": math.exp(self._eval_loss) if has_held_out else None,
            "parameters": self._model.parameters,
            "trained_parameters": sum(parameter.numel() for _, parameter in self._parameters),
            "skipped_rows": len(self._inputs.skipped),
            "seconds": math.fsum(float(str(row["time/step"])) for row in rows),
            **self._tasks(),
            **self._checkpoints.summary(),
        }

    def _tasks(self) -> dict[str, Any]:
        if not self._inputs.tasks:
            return {}
        model = AnsweringEncoderDecoder(self._model)
        outcomes = measure_tasks(model, self._inputs.tasks, self._config.tasks, seed=self._config.seed)
        return {
            "tasks": {
                f"{outcome.task}, {outcome.shots} shots": {
                    "questions": len(next(iter(outcome.correct.values()))),
                    **{measure: float(correct.mean()) for measure, correct in outcome.correct.items()},
                }
                for outcome in outcomes
            }
        }

    def _pairs_of(self, step: int) -> list[Pair]:
        """The examples of a step: each pass over the data has an order, and spans, of its own."""
        train, count = self._inputs.train, self._config.examples_per_step
        chosen: list[Pair] = []
        for number in range(step * count, (step + 1) * count):
            epoch, place = divmod(number, len(train))
            index = int(self._order(epoch)[place])
            chosen.append(corrupted(self._config, self._model, train[index], epoch, index))
        return chosen

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._epoch != epoch:
            rng = np.random.default_rng([self._config.seed, epoch])
            self._epoch, self._permutation = epoch, rng.permutation(len(self._inputs.train))
        return self._permutation

    def _nll_sum(self, pairs: Sequence[Pair]) -> torch.Tensor:
        logprobs, _ = self._model.target_logprobs([source for source, _ in pairs], [target for _, target in pairs])
        return -logprobs.sum()

    def _after_step(self, metrics: Metrics, started: float, tokens: int) -> None:
        trained = time.perf_counter()
        is_last = self._steps_done == self._config.steps
        if self._inputs.held_out and (is_last or self._steps_done % self._config.eval_every_steps == 0):
            metrics |= self.evaluate()
            metrics["time/eval"] = time.perf_counter() - trained
        metrics |= {
            "time/step": time.perf_counter() - started,
            "perf/tokens_per_s": tokens / (trained - started),
            "perf/peak_memory_mib": peak_memory_mib(self._model.device),
            "progress/tokens": float(self._tokens),
            "progress/epoch": self._steps_done * self._config.examples_per_step / len(self._inputs.train),
        }
        self._run.metrics.log(self._steps_done, metrics)
        self._checkpoints.note(self._steps_done, metrics)
        if self._checkpoints.is_due(self._steps_done):
            if self._checkpoints.best_step == self._steps_done:
                self.save_model(BEST_MODEL)
            self._save()

    def _save(self) -> None:
        tensors = {
            **with_owner("model", self._model.weights()),
            **with_owner("optimizer", optimizer_tensors(self._optimizer, self._parameters)),
        }
        values = {"tokens": self._tokens, "eval_loss": str(self._eval_loss)}
        self._checkpoints.save(TrainingState(self._steps_done, tensors, values))


def _task_line(name: str, measures: Mapping[str, float]) -> str:
    shares = ", ".join(f"{key} {value:.3f}" for key, value in measures.items() if key != "questions")
    return f"{name}: {shares} of {measures['questions']} questions right"


def _groups(pairs: Sequence[Pair], size: int) -> list[Sequence[Pair]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
