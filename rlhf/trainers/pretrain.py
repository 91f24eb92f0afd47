"""`rlhf pretrain`: a causal language model from text.

Owns the loop: packed sequences in, optimizer steps, held-out perplexity, checkpoints, the final folder. What it
starts from is `pretrain_inputs`, packing `rlhf.text_stream`, the step from gradients to weights `rlhf.optimization`,
which loss is a spike `rlhf.loss_spikes`.
"""

import logging
import math
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.checkpoint import save_model
from policies.sequences import pad_texts
from rlhf.compute_precision import reduced_precision, resolve_compute_dtype
from rlhf.config import PretrainConfig
from rlhf.gradient_sums import sum_gradients
from rlhf.loss_spikes import LossSpikeError, SpikeWatch
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.reports.closing import print_closing
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.row_shares import share_rows
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.health.training import LOSS_ROLLED_BACK
from rlhf.runtime.kept_checkpoints import BEST_MODEL, KeptCheckpoints
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.run_folder import RunFiles, RunFolder
from rlhf.runtime.training_run import TrainingRun, follow, open_training_run
from rlhf.runtime.training_state import (
    TrainingState,
    load_latest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    with_owner,
)
from rlhf.stage_ranks import run_in_ranks
from rlhf.text_stream import TextStream, TokenIds, mean_nll
from rlhf.trainers.pretrain_inputs import TOKENIZER_FOLDER, PretrainInputs, keep_tokenizer, read_inputs

Metrics = dict[str, float]

logger = logging.getLogger(__name__)


def run(config: PretrainConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, an ordinary Hugging Face folder, with metrics, summary and report beside it.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
        WorkerError: one of several ranks was lost.
    """
    run_in_ranks(train, config, resume=resume)


def train(config: PretrainConfig, *, resume: bool, ranks: Ranks = ALONE) -> None:
    """`run` on one of several ranks; the first one owns the run folder and the terminal."""
    inputs = read_inputs(config, resume=resume)
    ranks.require_same("the model to train", lambda: inputs.backbone.fingerprint)
    if not ranks.is_first:
        follower = Pretrainer(config, inputs, None, ranks)
        follow(follower, config.run_dir, resume=resume)
        return
    with open_training_run(config, resume=resume, stage="pretrain", total_steps=config.steps) as run:
        keep_tokenizer(run.folder.path / TOKENIZER_FOLDER, config, inputs.backbone)
        trainer = Pretrainer(config, inputs, run, ranks)
        if run.checkpoint is not None:
            trainer.restore(run.checkpoint)
        trainer.train()
        summary = trainer.summary(run.folder)
        save_pretrained(run.folder.path / "model", inputs.backbone, config)
        run.metrics.close(summary)
        path = run.folder.path
        write_report(path, generic_training_page(path, f"Pretraining of {path.name}"))
    print_closing(path)


class Pretrainer:
    """The state between steps: weights, moments and the position in the text; `step()` is the algorithm.

    Args:
        config: The run's configuration.
        inputs: Data and model.
        run: Where numbers and checkpoints go; None on ranks that leave that to the first.
        ranks: Those that train together.
    """

    def __init__(
        self, config: PretrainConfig, inputs: PretrainInputs, run: TrainingRun | None, ranks: Ranks = ALONE
    ) -> None:
        self._config, self._inputs, self._run, self._ranks = config, inputs, run, ranks
        self._backbone = inputs.backbone
        self._policy = CausalPolicy(inputs.backbone, adapter=None, temperature=1.0)
        self._stream = TextStream(
            inputs.texts,
            inputs.backbone.tokenizer,
            sequence_tokens=config.sequence_tokens,
            packing=config.packing,
            seed=config.seed,
        )
        self._parameters = self._policy.trainable()
        self._optimizer = build_optimizer(self._parameters, config.optimizer)
        self._schedule = build_schedule(config.optimizer, config.steps)
        self._compute_dtype = resolve_compute_dtype(config.compute_dtype, self._backbone.device)
        self._steps_done = 0
        self._sequences_read = 0
        self._spikes = None if config.spikes is None else SpikeWatch(config.spikes)
        self._checkpoints = self._kept_checkpoints()
        self._tokens = 0
        self._logged_tokens = 0
        self._eval_loss = math.nan

    def train(self) -> None:
        """Steps to the end."""
        if self._spikes is not None and self._steps_done == 0:
            # A spike before the first checkpoint goes back to the start.
            self._save()
        while self._steps_done < self._config.steps:
            started, position = time.perf_counter(), self._stream.state_dict()
            try:
                metrics = self.step()
            except (LossSpikeError, NonFiniteLossError) as error:
                if self._spikes is None:
                    # Weights and moments are those before the bad step; the text must stand there, too.
                    self._stream.load_state_dict(position)
                    self._save()
                    raise
                self._roll_back(self._spikes, error)
                continue
            self._steps_done += 1
            self._after_step(metrics, started)

    def step(self) -> Metrics:
        """One optimizer step on the sequences that are due; the loss is the mean over all their tokens."""
        config, count = self._config, sequences_due(self._config, self._tokens)
        rows = self._stream.next(count)
        self._sequences_read += count
        lengths = [len(row) for row in rows]
        token_count = sum(lengths) - len(rows)
        loss = torch.zeros((), device=self._backbone.device)
        with reduced_precision(self._backbone.device, self._compute_dtype):
            counts_padding = not self._backbone.packs_rows
        share = share_rows(lengths, self._ranks, token_budget=config.micro_batch_tokens, counts_padding=counts_padding)
        for group in share.groups:
            micro_loss = self._nll_sum([rows[index] for index in group]) / token_count
            micro_loss.backward()
            loss += micro_loss.detach()
        self._ranks.add_up(loss)
        mean = loss.item()
        if self._spikes is not None:
            self._spikes.check(mean)
        sum_gradients([parameter for _, parameter in self._parameters], self._ranks)
        taken = optimizer_step(
            self._optimizer, config.optimizer, self._schedule, self._parameters, step=self._steps_done, loss=mean
        )
        self._tokens += sum(lengths)
        metrics = {"loss/train": mean, "policy/grad_norm": taken.grad_norm, "progress/lr": taken.learning_rate}
        if config.sequences_ramp is not None:
            metrics["progress/sequences_per_step"] = float(count)
        if self._spikes is not None:
            self._spikes.accept(mean)
            metrics |= self._spikes.metrics()
        return metrics

    def evaluate(self) -> Metrics:
        """Held-out cross-entropy and perplexity, in float32, each document read by itself."""
        budget = self._config.micro_batch_tokens
        self._eval_loss = mean_nll(self._policy, self._inputs.held_out, micro_batch_tokens=budget, ranks=self._ranks)
        return {"eval/loss": self._eval_loss, "eval/perplexity": math.exp(self._eval_loss)}

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._policy.load_weights(state.tensors_of("model"))
        load_optimizer_tensors(self._optimizer, self._parameters, state.tensors_of("optimizer"))
        self._stream.load_state_dict(state.values["text"])
        self._eval_loss = float(state.values["eval_loss"])
        self._tokens = self._logged_tokens = int(state.values["tokens"])
        self._sequences_read = int(state.values["sequences"])
        if self._spikes is not None:
            self._spikes.load_state_dict(state.values["spikes"])
        self._steps_done = state.step

    def _roll_back(self, spikes: SpikeWatch, error: LossSpikeError | NonFiniteLossError) -> None:
        """Back to a good checkpoint, past the data since then, with what was written about the steps between dropped.

        The checkpoint is written again with the new place in the text, so that a run that dies now goes on from there.

        Raises:
            RepeatedSpikesError: there were too many spikes.
        """
        config = self._config.spikes
        assert config is not None, "there is a watch exactly where there is a configuration of it"
        spiked_at, position, read = self._steps_done + 1, self._stream.state_dict(), self._sequences_read
        checkpoints = RunFiles(self._config.run_dir).checkpoints_path
        state = load_latest_checkpoint(checkpoints, not_after=self._steps_done - config.rewind_steps)
        assert state is not None, "`train` has saved the start"
        rollbacks, skipped = spikes.rollbacks, spikes.skipped_sequences
        self._optimizer.zero_grad(set_to_none=True)
        self._optimizer.state.clear()  # A checkpoint of the start has no moments.
        self.restore(state)
        spikes.rollbacks, spikes.skipped_sequences = rollbacks, skipped
        self._stream.load_state_dict(position)
        further = config.skip_steps * self._config.sequences_per_step
        self._stream.next(further)
        skipped_now = read - self._sequences_read + further
        self._sequences_read = read + further
        spikes.count_rollback(skipped_now)
        self._ranks.total(0.0)  # Nobody writes the checkpoint again while others still read it.
        if self._run is not None:
            self._forget_steps(self._run)
            reason = error.finding if isinstance(error, NonFiniteLossError) else error
            finding = f"step {spiked_at}: {reason}; back to step {state.step}, {skipped_now} sequences skipped"
            logger.warning("%s", finding)
            self._run.metrics.log_alert(LOSS_ROLLED_BACK.alert(state.step, finding))

    def _forget_steps(self, run: TrainingRun) -> None:
        run.folder.truncate_after(self._steps_done)
        run.metrics.rewind(run.folder.read_metrics())
        self._checkpoints = self._kept_checkpoints()
        self._rewrite_best(run)
        self._save()

    def _rewrite_best(self, run: TrainingRun) -> None:
        """Of the steps that are left, the best one: `best` may hold the weights of one that was taken back."""
        if self._config.checkpoint.keep_best is None:
            return
        folder, best = run.folder.path / BEST_MODEL, self._checkpoints.best_step
        if best is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        self._policy.load_weights(_weights_at(run.folder, best))
        save_pretrained(folder, self._backbone, self._config)
        self._policy.load_weights(_weights_at(run.folder, self._steps_done))

    def _kept_checkpoints(self) -> KeptCheckpoints:
        folder = None if self._run is None else self._run.folder
        return KeptCheckpoints(folder, self._config.checkpoint, self._config.steps)

    def _nll_sum(self, sequences: Sequence[TokenIds]) -> torch.Tensor:
        batch = pad_texts(sequences, pad_id=self._backbone.pad_id, device=self._backbone.device)
        with reduced_precision(self._backbone.device, self._compute_dtype):
            return self._policy.text_nll(batch).sum()

    def _after_step(self, metrics: Metrics, started: float) -> None:
        """Held-out loss and checkpoint where due, and the log line of the step that just ended."""
        config = self._config
        trained = time.perf_counter()
        is_last = self._steps_done == config.steps
        if self._inputs.held_out and (is_last or self._steps_done % config.eval_every_steps == 0):
            metrics |= self.evaluate()
            metrics["time/eval"] = time.perf_counter() - trained
        metrics |= {
            "time/step": time.perf_counter() - started,
            "perf/tokens_per_s": (self._tokens - self._logged_tokens) / (trained - started),
            "perf/peak_memory_mib": peak_memory_mib(self._backbone.device),
            "progress/tokens": float(self._tokens),
            "progress/epoch": self._stream.epoch_progress,
        }
        self._logged_tokens = self._tokens
        if self._run is not None:
            self._run.metrics.log(self._steps_done, metrics)
            self._save_if_due(self._run, metrics)

    def _save_if_due(self, run: TrainingRun, metrics: Metrics) -> None:
        self._checkpoints.note(self._steps_done, metrics)
        if self._checkpoints.is_due(self._steps_done):
            if self._checkpoints.best_step == self._steps_done:
                save_pretrained(run.folder.path / BEST_MODEL, self._backbone, self._config)
            self._save()

    def _save(self) -> None:
        if self._run is None:
            return
        tensors = {
            **with_owner("model", self._policy.weights()),
            **with_owner("optimizer", optimizer_tensors(self._optimizer, self._parameters)),
        }
        values = {
            "text": self._stream.state_dict(),
            "tokens": self._logged_tokens,
            "sequences": self._sequences_read,
            "spikes": None if self._spikes is None else self._spikes.state_dict(),
            "eval_loss": str(self._eval_loss),
        }
        state = TrainingState(self._steps_done, tensors, values)
        self._checkpoints.save(state)

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return self._tokens

    def summary(self, folder: RunFolder) -> dict[str, Any]:
        """What the run came to, once it has ended."""
        rows = folder.read_metrics()
        has_held_out = math.isfinite(self._eval_loss)
        return {
            "steps": self._steps_done,
            "tokens": self._tokens,
            **(
                {}
                if self._spikes is None
                else {"rollbacks": self._spikes.rollbacks, "skipped_sequences": self._spikes.skipped_sequences}
            ),
            "train_loss": rows[-1]["loss/train"],
            "eval_loss": self._eval_loss if has_held_out else None,
            "perplexity": math.exp(self._eval_loss) if has_held_out else None,
            "parameters": sum(parameter.numel() for _, parameter in self._parameters),
            "vocabulary_size": len(self._backbone.tokenizer),
            "documents": len(self._inputs.texts),
            "skipped_rows": len(self._inputs.skipped),
            "seconds": math.fsum(float(str(row["time/step"])) for row in rows),
            **self._checkpoints.summary(),
        }


def _weights_at(folder: RunFolder, step: int) -> dict[str, torch.Tensor]:
    """Those of the checkpoint of a step, which is there."""
    state = load_latest_checkpoint(folder.checkpoints_path, not_after=step)
    assert state is not None, "the start has been saved"
    return state.tensors_of("model")


def sequences_due(config: PretrainConfig, tokens: int) -> int:
    """Sequences of the next step: first + (all - first) * min(tokens / ramp tokens, 1), rounded."""
    ramp, full = config.sequences_ramp, config.sequences_per_step
    if ramp is None:
        return full
    return round(ramp.first + (full - ramp.first) * min(tokens / ramp.tokens, 1.0))


def save_pretrained(target: Path, backbone: Backbone, config: PretrainConfig) -> None:
    """Writes the model as it is now, as an ordinary Hugging Face folder."""
    metadata = {"stage": "pretrain", "started_from": config.model.path}
    save_model(target, backbone.model, backbone.tokenizer, metadata)
