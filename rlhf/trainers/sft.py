"""`rlhf sft`: supervised fine-tuning on demonstrations, loss on completions only.

Owns the stage: demonstrations in, order of examples, held-out loss, checkpoints, the final model or adapter. TRL takes
the steps (`rlhf.trainers.trl_sft`); which tokens are learned is decided in `rlhf.conversations`.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from policies.loading import load_backbone, prepare_policy
from rlhf.config import SftConfig
from rlhf.config.retention import EwcRetention, ReplayRetention, Retention
from rlhf.conversations import Example, Row, examples_from_rows
from rlhf.example_order import example_order
from rlhf.forgetting.replay import old_examples, replay_order
from rlhf.forgetting.retention import build_penalties
from rlhf.instructions.held_out import HELD_OUT_SUMMARY, console_table, held_out_sections
from rlhf.optimization import NonFiniteLossError, build_schedule
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.row_shares import balance
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.metrics import MetricLogger
from rlhf.runtime.run_folder import RunFiles, RunFolder
from rlhf.runtime.terminal import stages_announce
from rlhf.runtime.training_run import follow, open_training_run
from rlhf.runtime.training_state import TrainingState
from rlhf.stage_ranks import run_in_ranks
from rlhf.trainers.sft_rows import read_demonstrations
from rlhf.trainers.trl_loop import Progress, StepReport, TrlSettings, require_context
from rlhf.trainers.trl_sft import train_with_trl
from rlhf.trainers.tuned_policy import TunedPolicy

logger = logging.getLogger(__name__)


def run(config: SftConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, a Hugging Face folder or a PEFT adapter, with metrics, summary and report.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
        WorkerError: one of several ranks was lost.
    """
    run_in_ranks(train, config, resume=resume)


def train(config: SftConfig, *, resume: bool, ranks: Ranks = ALONE) -> None:
    """`run` on one of several ranks; the first one owns the run folder and the terminal."""
    inputs = SftInputs(config)
    ranks.require_same(f"the model in model.path={config.model.path}", lambda: inputs.backbone.fingerprint)
    if inputs.held_out_tasks is not None and ranks.is_first:
        inputs.held_out_tasks.ask_before(inputs.backbone, inputs.adapter)
    total_steps = math.ceil(len(inputs.order) / config.examples_per_step)
    if not ranks.is_first:
        follower = SftRun(config, inputs, None, MetricLogger([]), total_steps, ranks=ranks)
        follow(follower, config.run_dir, resume=resume)
        return
    with open_training_run(config, resume=resume, stage="sft", total_steps=total_steps) as run:
        trainer = SftRun(config, inputs, run.folder, run.metrics, total_steps, ranks=ranks)
        if run.checkpoint is not None:
            trainer.restore(run.checkpoint)
        summary = trainer.train()
        trainer.save_model()
        if inputs.held_out_tasks is not None:
            summary[HELD_OUT_SUMMARY] = inputs.held_out_tasks.ask_after(inputs.backbone, inputs.adapter)
        run.metrics.close(summary)
        path = run.folder.path
        page = generic_training_page(path, f"Fine-tuning of {path.name}")
        write_report(path, replace(page, sections=[*held_out_sections(summary), *page.sections]))
    if HELD_OUT_SUMMARY in summary and stages_announce():
        Console(highlight=False).print(console_table(summary[HELD_OUT_SUMMARY]))
    print_closing(path)


class SftInputs:
    """The data and the model of a run, ready to train.

    Attributes:
        backbone: The model, with the adapter that trains where tuning is LoRA.
        adapter: Name of that adapter; None where the model itself trains.
        examples: Training demonstrations, then the old ones that replay mixes among them.
        new: How many of them are new.
        old: Examples of `retention.data`.
        held_out: Held-out demonstrations; empty without `data.eval`.
        skipped: One line for each row that `on_bad_row=skip` left out.
        order: Index into `examples` of everything the run trains on (see `example_order`).
        mixture: Examples of each task; empty without `data.mixture`.
        held_out_tasks: Tasks of held-out clusters; None without any.
    """

    def __init__(self, config: SftConfig) -> None:
        self.backbone = load_backbone(config.model)
        self.adapter = prepare_policy(self.backbone, config.model.tuning, seed=config.seed)
        require_context(config.max_tokens, self.backbone)
        self.skipped: list[str] = []
        demonstrations = read_demonstrations(config)
        self.mixture, self.held_out_tasks = demonstrations.mixture, demonstrations.held_out_tasks
        self._skip(demonstrations.skipped)
        self.examples = self._examples(config, demonstrations.train, f"data.train={config.data.train}")
        self.held_out = (
            self._examples(config, demonstrations.held_out, f"data.eval={config.data.eval}")
            if demonstrations.held_out
            else []
        )
        self.new = len(self.examples)
        self.old = self._old_examples(config.retention, config)
        self.order = self._order(config)

    def _old_examples(self, retention: Retention, config: SftConfig) -> list[Example]:
        if not isinstance(retention, ReplayRetention | EwcRetention) or retention.data is None:
            return []
        found = old_examples(
            retention.data,
            self.backbone.tokenizer,
            max_tokens=config.max_tokens,
            on_bad_row=config.data.on_bad_row,
            chat_template=config.model.chat_template,
        )
        self._skip(found.skipped)
        return found.examples

    def _order(self, config: SftConfig) -> list[int]:
        settings: dict[str, Any] = {
            "epochs": config.epochs,
            "examples_per_step": config.examples_per_step,
            "seed": config.seed,
        }
        if not isinstance(config.retention, ReplayRetention):
            return example_order([len(example.token_ids) for example in self.examples], **settings)
        self.examples = [*self.examples, *self.old]
        lengths = [len(example.token_ids) for example in self.examples]
        return replay_order(lengths, self.new, share=config.retention.share, **settings)

    def _examples(self, config: SftConfig, rows: Sequence[Row], source: str) -> list[Example]:
        result = examples_from_rows(
            rows,
            self.backbone.tokenizer,
            max_tokens=config.max_tokens,
            source=source,
            on_bad_row=config.data.on_bad_row,
            chat_template=config.model.chat_template,
        )
        self._skip(result.skipped)
        return result.examples

    def _skip(self, lines: Sequence[str]) -> None:
        for line in lines:
            logger.warning("skipped %s", line)
        self.skipped += lines


class SftRun:
    """The state between steps: weights, moments and how many steps are done.

    Args:
        config: The run's configuration.
        inputs: Data and model.
        folder: Where checkpoints and the model go; None on ranks that leave that to the first.
        metrics: Where numbers go.
        total_steps: Steps of the whole run.
        ranks: Those that train together.
    """

    def __init__(
        self,
        config: SftConfig,
        inputs: SftInputs,
        folder: RunFolder | None,
        metrics: MetricLogger,
        total_steps: int,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._config, self._inputs, self._folder, self._metrics = config, inputs, folder, metrics
        self._total_steps = total_steps
        self._tuned = TunedPolicy("sft", config, inputs.backbone, inputs.adapter, folder, total_steps)
        parameters = [parameter for _, parameter in self._tuned.parameters]
        self._penalties = build_penalties(config, self._tuned.policy, parameters, inputs.old, ranks)
        lengths = [len(example.token_ids) for example in inputs.examples]
        self._progress = Progress(lengths, inputs.order, config.examples_per_step, inputs.new)
        self._steps_done = 0
        self._eval_loss = math.nan
        self._step_started = 0.0

    def train(self) -> dict[str, Any]:
        """Steps to the end; returns the summary, which only the first rank has."""
        config, inputs = self._config, self._inputs
        settings = TrlSettings(
            examples_per_step=config.examples_per_step,
            micro_batch_examples=config.micro_batch_examples,
            max_grad_norm=config.optimizer.max_grad_norm,
            seed=config.seed,
            scratch_folder=RunFiles(config.run_dir).path,
            ranks=self._ranks,
        )
        self._step_started = time.perf_counter()
        try:
            with inputs.backbone.adapters.use(inputs.adapter):
                train_with_trl(
                    inputs.backbone,
                    inputs.examples,
                    inputs.order,
                    optimizer=self._tuned.optimizer,
                    schedule=build_schedule(config.optimizer, self._total_steps),
                    settings=settings,
                    first_step=self._steps_done,
                    on_step=self._after_step,
                    old_model=self._penalties.old_model,
                    weight_penalty=self._penalties.weights,
                )
        except NonFiniteLossError:
            self._tuned.save(self._steps_done, self._kept_values())
            raise
        return {} if self._folder is None else self._summary(self._folder)

    def evaluate(self) -> dict[str, float]:
        """Held-out cross-entropy and perplexity, mean over the learned tokens."""
        held_out, ranks = self._inputs.held_out, self._ranks
        places = balance([len(example.token_ids) for example in held_out], ranks.count)[ranks.index]
        own = self._logprobs([held_out[place] for place in places])
        learned = [int(example.loss_mask.sum()) for example in held_out]
        logprobs = ranks.join_rows(dict(zip(places, own, strict=True)), learned)
        self._eval_loss = -float(np.concatenate(logprobs).mean(dtype=np.float64))
        return {"eval/loss": self._eval_loss, "eval/perplexity": math.exp(self._eval_loss)}

    def _logprobs(self, examples: Sequence[Example]) -> list[NDArray[np.float32]]:
        """Of the learned tokens of each example."""
        return self._tuned.policy.response_logprobs(
            [example.token_ids[~example.loss_mask] for example in examples],
            [example.token_ids[example.loss_mask] for example in examples],
            token_budget=self._config.micro_batch_examples * self._config.max_tokens,
        )

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._tuned.restore(state)
        self._eval_loss = float(state.values["eval_loss"])
        self._steps_done = state.step

    def save_model(self) -> None:
        """Writes run_dir/model."""
        self._tuned.save_model()

    def _after_step(self, report: StepReport) -> None:
        """Held-out loss and checkpoint where due, and the log line of the step that just ended."""
        config, trained = self._config, time.perf_counter()
        self._steps_done = report.steps_done
        metrics = {
            "loss/train": report.loss,
            **({"loss/retention": report.penalty} if self._penalties.any else {}),
            "policy/grad_norm": report.grad_norm,
            "progress/lr": report.learning_rate,
            **self._progress.after(report.steps_done, trained - self._step_started),
            "perf/peak_memory_mib": peak_memory_mib(self._inputs.backbone.device),
        }
        is_last = self._steps_done == self._total_steps
        if self._inputs.held_out and (is_last or self._steps_done % config.eval_every_steps == 0):
            metrics |= self.evaluate()
            metrics["time/eval"] = time.perf_counter() - trained
        metrics["time/step"] = time.perf_counter() - self._step_started
        self._metrics.log(self._steps_done, metrics)
        self._tuned.keep_if_due(self._steps_done, metrics, self._kept_values())
        self._step_started = time.perf_counter()

    def _kept_values(self) -> dict[str, str]:
        return {"eval_loss": str(self._eval_loss)}

    def _summary(self, folder: RunFolder) -> dict[str, Any]:
        rows = folder.read_metrics()
        has_held_out = math.isfinite(self._eval_loss)
        replayed = sum(index >= self._inputs.new for index in self._inputs.order)
        return {
            "steps": self._steps_done,
            "examples": len(self._inputs.order),
            **({"replayed": replayed} if replayed else {}),
            **({"mixture": self._inputs.mixture} if self._inputs.mixture else {}),
            "train_loss": rows[-1]["loss/train"],
            "eval_loss": self._eval_loss if has_held_out else None,
            "perplexity": math.exp(self._eval_loss) if has_held_out else None,
            "skipped_rows": len(self._inputs.skipped),
            "seconds": math.fsum(float(str(row["time/step"])) for row in rows),
            **self._tuned.summary(),
        }
