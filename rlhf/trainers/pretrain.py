"""`rlhf pretrain`: a causal language model from text.

Owns the loop: packed sequences in, optimizer steps, held-out perplexity, checkpoints, the final folder. Packing is
`rlhf.text_stream`, the step from gradients to weights `rlhf.optimization`, the model `policies.loading`.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from policies.attention import trains_faster_unfused
from policies.causal import CausalPolicy
from policies.checkpoint import atomic_folder, save_model
from policies.config import ModelConfig
from policies.loading import Backbone, load_backbone, random_backbone, resolve_device
from policies.sequences import pad_texts
from policies.tokenization import load_tokenizer_folder, train_tokenizer
from rlhf.compute_precision import reduced_precision, resolve_compute_dtype
from rlhf.config import PretrainConfig, PretrainModelConfig
from rlhf.data import load_rows
from rlhf.gradient_sums import sum_gradients
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.reports.page import write_report
from rlhf.reports.training import generic_training_page
from rlhf.row_shares import share_rows
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.kept_checkpoints import BEST_MODEL, KeptCheckpoints
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.run_folder import RunFiles, RunFolder, refuse_existing_run
from rlhf.runtime.training_run import TrainingRun, open_training_run
from rlhf.runtime.training_state import (
    TrainingState,
    load_latest_checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
    with_owner,
)
from rlhf.stage_ranks import run_in_ranks
from rlhf.text_stream import TextStream, TokenIds, encode_documents, mean_nll, require_texts

Metrics = dict[str, float]

TOKENIZER_FOLDER = "tokenizer"
"""Folder of run_dir with the tokenizer that a run has trained."""

logger = logging.getLogger(__name__)


def run(config: PretrainConfig, *, resume: bool) -> None:
    """Trains and leaves run_dir/model, an ordinary Hugging Face folder, with metrics, summary and report beside it.

    Raises:
        ValueError: what the user can fix, before the run folder is made.
        NonFiniteLossError: training stopped; the state before the bad step is saved.
        WorkerError: one of several ranks was lost.
    """
    if config.ranks.workers > 1:
        if not resume:
            refuse_existing_run(config.run_dir)
        run_in_ranks(train, config, resume=resume)
    else:
        train(config, resume=resume)


def train(config: PretrainConfig, *, resume: bool, ranks: Ranks = ALONE) -> None:
    """`run` on one of several ranks; the first one owns the run folder and the terminal."""
    inputs = read_inputs(config, resume=resume)
    ranks.require_same("the model to train", lambda: inputs.backbone.fingerprint)
    if not ranks.is_first:
        follower = Pretrainer(config, inputs, None, ranks)
        checkpoint = load_latest_checkpoint(RunFiles(config.run_dir).checkpoints_path) if resume else None
        if checkpoint is not None:
            follower.restore(checkpoint)
        follower.train()
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


@dataclass(frozen=True, slots=True)
class PretrainInputs:
    """The data and the model of a run, ready to train.

    Attributes:
        texts: Training documents.
        held_out: Held-out documents as token ids; empty without `data.eval`.
        skipped: One line for each row that `on_bad_row=skip` left out.
        backbone: The model, from random weights or from `model.path`.
    """

    texts: Sequence[str]
    held_out: Sequence[TokenIds]
    skipped: Sequence[str]
    backbone: Backbone


def read_inputs(config: PretrainConfig, *, resume: bool) -> PretrainInputs:
    """Reads the data and builds the model that a configuration names; with `resume`, on the tokenizer of its start.

    Raises:
        ValueError: what the user can fix.
    """
    texts, skipped = _texts(config, config.data.train, "data.train")
    held_out: list[str] = []
    if config.data.eval is not None:
        held_out, more = _texts(config, config.data.eval, "data.eval")
        skipped += more
    trained = Path(config.run_dir) / TOKENIZER_FOLDER
    backbone = build_backbone(config.model, texts, seed=config.seed, trained_tokenizer=trained if resume else None)
    _require_context(config.sequence_tokens, backbone)
    for line in skipped:
        logger.warning("skipped %s", line)
    encoded = encode_documents(held_out, backbone.tokenizer, max_tokens=backbone.context_tokens)
    return PretrainInputs(texts, encoded, skipped, backbone)


def _texts(config: PretrainConfig, source: str, field: str) -> tuple[list[str], list[str]]:
    rows = load_rows(source, field=field)
    return require_texts(rows, source=f"{field}={source}", on_bad_row=config.data.on_bad_row)


def build_backbone(
    config: PretrainModelConfig, texts: Sequence[str], *, seed: int, trained_tokenizer: Path | None = None
) -> Backbone:
    """The model to train: loaded from `path`, or random with the tokenizer that `tokenizer` says.

    Args:
        config: The model.
        texts: What a new tokenizer is trained on.
        seed: Of random weights.
        trained_tokenizer: Folder that holds the new tokenizer once it has been trained.

    Raises:
        ValueError: what the user can fix.
    """
    if config.path is not None:
        return load_backbone(ModelConfig(path=config.path, device=config.device))
    assert config.architecture is not None, "the config has checked that there is a path or an architecture"
    if trained_tokenizer is not None and trained_tokenizer.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(trained_tokenizer)
    elif config.new_tokenizer is None:
        tokenizer = load_tokenizer_folder(str(config.tokenizer), field="model.tokenizer")
    else:
        assert config.vocabulary_size is not None, "the config has checked that a new tokenizer has a size"
        tokenizer = train_tokenizer(texts, vocabulary_size=config.vocabulary_size, kind=config.new_tokenizer)
    tokenizer.model_max_length = config.architecture.context_tokens
    return random_backbone(config.architecture, tokenizer, seed=seed, device=resolve_device(config.device))


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
        folder = None if run is None else run.folder
        self._checkpoints = KeptCheckpoints(folder, config.checkpoint, config.steps)
        self._tokens = 0
        self._logged_tokens = 0
        self._eval_loss = math.nan

    def train(self) -> None:
        """Steps to the end."""
        attention = self._training_attention()
        while self._steps_done < self._config.steps:
            started, position = time.perf_counter(), self._stream.state_dict()
            self._backbone.model.set_attn_implementation(attention)
            try:
                metrics = self.step()
            except NonFiniteLossError:
                # Weights and moments are those before the bad step; the text must stand there, too.
                self._stream.load_state_dict(position)
                self._save()
                raise
            self._steps_done += 1
            self._after_step(metrics, started)

    def step(self) -> Metrics:
        """One optimizer step on `sequences_per_step` sequences; the loss is the mean over all their tokens."""
        config = self._config
        sequences = self._stream.next(config.sequences_per_step)
        lengths = [len(sequence) for sequence in sequences]
        token_count = sum(lengths) - len(sequences)
        loss = torch.zeros((), device=self._backbone.device)
        share = share_rows(lengths, self._ranks, token_budget=config.micro_batch_tokens, counts_padding=True)
        for group in share.groups:
            micro_loss = self._nll_sum([sequences[index] for index in group]) / token_count
            micro_loss.backward()
            loss += micro_loss.detach()
        self._ranks.add_up(loss)
        sum_gradients([parameter for _, parameter in self._parameters], self._ranks)
        mean = loss.item()
        self._tokens += sum(lengths)
        taken = optimizer_step(
            self._optimizer, config.optimizer, self._schedule, self._parameters, step=self._steps_done, loss=mean
        )
        return {"loss/train": mean, "policy/grad_norm": taken.grad_norm, "progress/lr": taken.learning_rate}

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
        self._steps_done = state.step

    def _nll_sum(self, sequences: Sequence[TokenIds]) -> torch.Tensor:
        batch = pad_texts(sequences, pad_id=self._backbone.pad_id, device=self._backbone.device)
        with reduced_precision(self._backbone.device, self._compute_dtype):
            return self._policy.text_nll(batch).sum()

    def _training_attention(self) -> str:
        tokens = self._config.sequence_tokens
        return "eager" if trains_faster_unfused(self._backbone.device, self._compute_dtype, tokens) else "sdpa"

    def _after_step(self, metrics: Metrics, started: float) -> None:
        """Held-out loss and checkpoint where due, and the log line of the step that just ended."""
        config = self._config
        trained = time.perf_counter()
        is_last = self._steps_done == config.steps
        if self._inputs.held_out and (is_last or self._steps_done % config.eval_every_steps == 0):
            self._backbone.model.set_attn_implementation("sdpa")
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


def keep_tokenizer(target: Path, config: PretrainConfig, backbone: Backbone) -> None:
    """Writes the tokenizer that a run has trained, once, for `--resume`: training it again may give another."""
    if config.model.new_tokenizer is not None and not target.is_dir():
        with atomic_folder(target) as aside:
            backbone.tokenizer.save_pretrained(aside)


def save_pretrained(target: Path, backbone: Backbone, config: PretrainConfig) -> None:
    """Writes the model as it is now, as an ordinary Hugging Face folder."""
    metadata = {"stage": "pretrain", "started_from": config.model.path}
    save_model(target, backbone.model, backbone.tokenizer, metadata)


def _require_context(sequence_tokens: int, backbone: Backbone) -> None:
    if sequence_tokens > backbone.context_tokens:
        raise ValueError(
            f"sequence_tokens={sequence_tokens} exceeds the model's context of {backbone.context_tokens} tokens; "
            "lower it, or raise model.architecture.context_tokens"
        )
