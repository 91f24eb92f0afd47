"""TRL's SFTTrainer, behind one function. The only file of the stage that knows TRL.

TRL contributes the loss (output layer in tiles, token mean over the whole optimizer step) and the loop with its
devices. Everything that decides a resumed run stays ours: the order of examples, the schedule, the optimizer and the
checkpoints, so that a run continues exactly from any step. Tokenization is ours too: examples arrive with a completion
mask.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import datasets
import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainerState
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from policies.loading import Backbone
from rlhf.conversations import Example
from rlhf.optimization import Schedule, clip_gradients, require_finite


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step that TRL took.

    Attributes:
        steps_done: Optimizer steps since the start of the run, this one included.
        loss: Cross-entropy, mean over the learned tokens of the step, nats per token.
        grad_norm: Global norm before clipping.
        learning_rate: Rate that the step was taken with.
    """

    steps_done: int
    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class TrlSettings:
    """What TRL needs to know of a run.

    Attributes:
        examples_per_step: Examples of one optimizer step.
        micro_batch_examples: Examples of one forward and backward pass.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seed that TRL puts into torch's generators; nothing of ours draws from them.
        scratch_folder: Folder that TRL may create; nothing is written there.
    """

    examples_per_step: int
    micro_batch_examples: int
    max_grad_norm: float
    seed: int
    scratch_folder: Path


def train_with_trl(
    backbone: Backbone,
    examples: Sequence[Example],
    order: Sequence[int],
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: TrlSettings,
    first_step: int,
    on_step: Callable[[StepReport], None],
) -> None:
    """Takes every optimizer step from `first_step` to the end of `order`.

    Args:
        backbone: The model; what of it requires gradients is what trains.
        examples: Demonstrations.
        order: Index into `examples` of everything the whole run trains on, epochs included, in order; step s takes
            `order[s * examples_per_step : (s + 1) * examples_per_step]`.
        optimizer: From `rlhf.optimization`, over the parameters that train.
        schedule: Learning-rate factor of each step.
        settings: See `TrlSettings`.
        first_step: Steps that are done already.
        on_step: Called after each step; an exception from it ends training.

    Raises:
        NonFiniteLossError: before the step that a NaN or infinite loss or gradient would have spoiled.
    """
    remaining = order[first_step * settings.examples_per_step :]
    if not remaining:
        return
    with _quiet():
        trainer = _OrderedSftTrainer(
            model=backbone.model,
            args=_arguments(settings, backbone.device, math.ceil(len(remaining) / settings.examples_per_step)),
            train_dataset=_dataset(examples),
            processing_class=backbone.tokenizer,
            optimizers=(optimizer, LambdaLR(optimizer, lambda step: schedule(first_step + step))),
        )
        trainer.use_order(remaining)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_StepCallback(trainer, first_step, on_step))
        try:
            trainer.train()
        finally:
            _restore_model(backbone)


class _OrderedSftTrainer(SFTTrainer):
    """SFTTrainer that takes examples in the order given, and remembers loss and gradient norm of the step under way."""

    step_loss = 0.0
    step_grad_norm = 0.0

    def use_order(self, order: Sequence[int]) -> None:
        """Trains on these examples, in this order; after construction, so that each is prepared only once."""
        self.train_dataset = self.train_dataset.select(order)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; its loss is its share of the mean over the step."""
        loss = super().training_step(*args, **kwargs)
        self.step_loss += loss.item()
        return loss

    def _clip_grad_norm(self, model: Any) -> float:  # noqa: ARG002 - the signature is that of transformers
        """Ours: it leaves gradients as they are where their norm is not finite, so that the first bad one has a name.

        transformers would make all of them NaN. To be removed when it checks the norm before it clips.
        """
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        self.step_grad_norm = clip_gradients(optimizer, self.args.max_grad_norm)
        return self.step_grad_norm

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


class _StepCallback(TrainerCallback):
    """Stops before a bad step, and reports each good one. The signatures are those of transformers."""

    def __init__(self, trainer: _OrderedSftTrainer, first_step: int, on_step: Callable[[StepReport], None]) -> None:
        self._trainer, self._first_step, self._on_step = trainer, first_step, on_step

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        loss, self._trainer.step_loss = self._trainer.step_loss, 0.0
        model = cast(PreTrainedModel, self._trainer.model)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        step = self._first_step + state.global_step
        require_finite(step, named, loss=loss, grad_norm=self._trainer.step_grad_norm)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs:  # The last call of a run has its duration instead.
            steps_done = self._first_step + state.global_step
            self._on_step(StepReport(steps_done, logs["loss"], logs["grad_norm"], logs["learning_rate"]))


def _arguments(settings: TrlSettings, device: torch.device, steps: int) -> SFTConfig:
    """TRL's defaults assume a large GPU: bfloat16 and gradient checkpointing on. Neither pays on a CPU."""
    on_gpu = device.type == "cuda"
    return SFTConfig(
        output_dir=str(settings.scratch_folder),
        max_steps=steps,
        per_device_train_batch_size=settings.micro_batch_examples,
        gradient_accumulation_steps=settings.examples_per_step // settings.micro_batch_examples,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        completion_only_loss=True,
        max_length=None,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        gradient_checkpointing=False,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _dataset(examples: Sequence[Example]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {
            "input_ids": [example.token_ids.tolist() for example in examples],
            "completion_mask": [example.loss_mask.astype(int).tolist() for example in examples],
        }
    )


def _restore_model(backbone: Backbone) -> None:
    """Undoes what TRL leaves on the model: train mode, and a forward method that a copy of the model would share."""
    backbone.model.eval()
    backbone.model.__dict__.pop("forward", None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences progress bars and advice of libraries; their errors still show."""
    verbosity, shows_bars = transformers.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # TRL switches gradient checkpointing on under a name that transformers 5.23 calls deprecated, so switching
            # it off warns; to be removed when TRL's default goes.
            warnings.filterwarnings(
                "ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning
            )
            yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if not shows_bars:
            datasets.enable_progress_bars()
