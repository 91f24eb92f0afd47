"""`rlhf dpo`: a policy straight from ranked responses, without reward model and rollouts (Rafailov et al. 2023).

Owns the stage: comparisons in, order of pairs, held-out agreement of the implicit reward, checkpoints, the final model
or adapter. TRL takes the steps (`rlhf.trainers.trl_dpo`); what pairs are made of is `rlhf.trainers.dpo_inputs`.
"""

import math
import time
from typing import Any

from reward.evaluation import PairEvaluation, evaluate_scores
from rlhf.config import DpoConfig
from rlhf.optimization import NonFiniteLossError, build_schedule
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.metrics import MetricLogger
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.training_run import open_training_run
from rlhf.runtime.training_state import TrainingState
from rlhf.trainers.dpo_inputs import DpoInputs, sequence_logprobs
from rlhf.trainers.trl_dpo import train_dpo_with_trl
from rlhf.trainers.trl_loop import Progress, StepReport, TrlSettings
from rlhf.trainers.tuned_policy import TunedPolicy


def run(config: DpoConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, a Hugging Face folder or a PEFT adapter, with metrics, summary and report.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
    """
    inputs = DpoInputs(config)
    total_steps = math.ceil(len(inputs.order) / config.pairs_per_step)
    with open_training_run(config, resume=resume, stage="dpo", total_steps=total_steps) as run:
        trainer = DpoRun(config, inputs, run.folder, run.metrics, total_steps)
        if run.checkpoint is not None:
            trainer.restore(run.checkpoint)
        summary = trainer.train()
        trainer.save_model()
        run.metrics.close(summary)
        path = run.folder.path
        write_report(path, generic_training_page(path, f"DPO of {path.name}"))
    print_closing(path)


class DpoRun:
    """The state between steps: weights, moments and how many steps are done."""

    def __init__(
        self, config: DpoConfig, inputs: DpoInputs, folder: RunFolder, metrics: MetricLogger, total_steps: int
    ) -> None:
        self._config, self._inputs, self._folder, self._metrics = config, inputs, folder, metrics
        self._total_steps = total_steps
        self._tuned = TunedPolicy("dpo", config, inputs.backbone, inputs.adapter, folder, total_steps)
        lengths = [pair.token_count for pair in inputs.pairs]
        self._progress = Progress(lengths, inputs.order, config.pairs_per_step)
        self._steps_done = 0
        self._step_started = 0.0

    def train(self) -> dict[str, Any]:
        """Steps to the end; returns the summary."""
        config, inputs = self._config, self._inputs
        settings = TrlSettings(
            examples_per_step=config.pairs_per_step,
            micro_batch_examples=config.micro_batch_pairs,
            max_grad_norm=config.optimizer.max_grad_norm,
            seed=config.seed,
            scratch_folder=self._folder.path,
        )
        self._step_started = time.perf_counter()
        try:
            with inputs.backbone.adapters.use(inputs.adapter):
                train_dpo_with_trl(
                    inputs.backbone,
                    inputs.pairs,
                    inputs.order,
                    beta=config.beta,
                    optimizer=self._tuned.optimizer,
                    schedule=build_schedule(config.optimizer, self._total_steps),
                    settings=settings,
                    first_step=self._steps_done,
                    on_step=self._after_step,
                )
        except NonFiniteLossError:
            self._tuned.save(self._steps_done, {})
            raise
        return self._summary()

    def evaluate(self) -> PairEvaluation:
        """How the implicit reward, beta * log(pi / pi_reference), agrees with the held-out comparisons."""
        held_out, config = self._inputs.held_out, self._config
        budget = config.micro_batch_pairs * config.max_tokens
        now = sequence_logprobs(self._tuned.policy, held_out.prompts, held_out.responses, token_budget=budget)
        return evaluate_scores(held_out.comparisons, config.beta * (now - held_out.reference_logprobs))

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._tuned.restore(state)
        self._steps_done = state.step

    def save_model(self) -> None:
        """Writes run_dir/model."""
        self._tuned.save_model()

    def _after_step(self, report: StepReport) -> None:
        """Held-out agreement and checkpoint where due, and the log line of the step that just ended."""
        config, trained = self._config, time.perf_counter()
        self._steps_done = report.steps_done
        metrics = {
            "rm/loss": report.loss,
            "rm/accuracy": report.logs["rewards/accuracies"],
            "rm/margin": report.logs["rewards/margins"],
            "rm/chosen_mean": report.logs["rewards/chosen"],
            "rm/rejected_mean": report.logs["rewards/rejected"],
            "policy/grad_norm": report.grad_norm,
            "progress/lr": report.learning_rate,
            **self._progress.after(report.steps_done, trained - self._step_started),
            "perf/peak_memory_mib": peak_memory_mib(self._inputs.backbone.device),
        }
        is_last = self._steps_done == self._total_steps
        if self._inputs.held_out and (is_last or self._steps_done % config.eval_every_steps == 0):
            metrics |= _held_out_metrics(self.evaluate())
            metrics["time/eval"] = time.perf_counter() - trained
        metrics["time/step"] = time.perf_counter() - self._step_started
        self._metrics.log(self._steps_done, metrics)
        self._tuned.keep_if_due(self._steps_done, metrics, {})
        self._step_started = time.perf_counter()

    def _summary(self) -> dict[str, Any]:
        last = self._folder.read_metrics()[-1]
        held_out = ("eval_accuracy", "eval_accuracy_low", "eval_accuracy_high", "eval_margin", "eval_loss")
        return {
            "steps": self._steps_done,
            "pairs": len(self._inputs.order),
            "train_loss": last["rm/loss"],
            **{name: last.get(f"rm/{name}") for name in held_out},
            "skipped_rows": len(self._inputs.skipped),
            "seconds": math.fsum(float(str(row["time/step"])) for row in self._folder.read_metrics()),
            **self._tuned.summary(),
        }


def _held_out_metrics(result: PairEvaluation) -> dict[str, float]:
    return {
        "rm/eval_loss": result.loss,
        "rm/eval_accuracy": result.accuracy,
        "rm/eval_accuracy_low": result.accuracy_low,
        "rm/eval_accuracy_high": result.accuracy_high,
        "rm/eval_margin": result.margin,
    }
