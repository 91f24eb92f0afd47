"""The loop that TRL's trainers take here: our order, our optimizer, a stop before a bad step, a report of a good one.

Owns what `trl_sft` and `trl_dpo` have in common, and knows transformers' Trainer, not TRL. TRL contributes loss and
devices; everything that decides a resumed run stays ours (order, schedule, optimizer, checkpoints), so that a run
continues exactly from any step.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import datasets
import numpy as np
import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainerState

from policies.backbone import Backbone
from rlhf.gradient_sums import sum_gradients
from rlhf.optimization import Schedule, clip_gradients, require_finite
from rlhf.runtime.distributed import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step that TRL took.

    Attributes:
        steps_done: Optimizer steps since the start of the run, this one included.
        loss: Of the whole step, in the units of the trainer's loss.
        penalty: What was added to it against forgetting; 0 without.
        grad_norm: Global norm before clipping.
        learning_rate: Rate that the step was taken with.
        logs: Everything that TRL logged of the step, by its names.
    """

    steps_done: int
    loss: float
    penalty: float
    grad_norm: float
    learning_rate: float
    logs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class TrlSettings:
    """What TRL needs to know of a run.

    Attributes:
        examples_per_step: Examples of one optimizer step, on all ranks together.
        micro_batch_examples: Examples of one forward and backward pass.
        max_grad_norm: Gradients are scaled down to this norm.
        seed: Seed that TRL puts into torch's generators; nothing of ours draws from them.
        scratch_folder: Folder that TRL may create; nothing is written there.
        ranks: Those that take each step together. TRL knows of none of them.
    """

    examples_per_step: int
    micro_batch_examples: int
    max_grad_norm: float
    seed: int
    scratch_folder: Path
    ranks: Ranks = ALONE

    def arguments(self, device: torch.device, steps: int) -> dict[str, Any]:
        """Arguments of any of TRL's configurations.

        TRL's defaults assume a large GPU: bfloat16 and gradient checkpointing on. Neither pays on a CPU.
        """
        on_gpu = device.type == "cuda"
        return {
            "output_dir": str(self.scratch_folder),
            "max_steps": steps,
            "per_device_train_batch_size": self.micro_batch_examples,
            "gradient_accumulation_steps": self.examples_per_step // (self.micro_batch_examples * self.ranks.count),
            "max_grad_norm": self.max_grad_norm,
            "seed": self.seed,
            "max_length": None,
            "bf16": trains_in_bfloat16(device),
            "gradient_checkpointing": False,
            "use_cpu": not on_gpu,
            "dataloader_pin_memory": on_gpu,
            "logging_steps": 1,
            "logging_nan_inf_filter": False,
            "save_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }


class Progress:
    """How far a run over examples has come, for its log.

    Args:
        lengths: Tokens of each example.
        order: What the whole run trains on, as `example_order` gives it.
        examples_per_step: Examples of one optimizer step.
        epoch_examples: How many of the examples, from the first, make an epoch; None counts all.
    """

    def __init__(
        self, lengths: Sequence[int], order: Sequence[int], examples_per_step: int, epoch_examples: int | None = None
    ) -> None:
        count = len(lengths) if epoch_examples is None else epoch_examples
        self._tokens_after = np.cumsum(np.array(lengths)[order])
        self._epochs_after = np.cumsum(np.array(order) < count) / count
        self._per_step = examples_per_step

    def after(self, steps: int, seconds: float) -> dict[str, float]:
        """The metrics after so many steps, the last of which took `seconds`."""
        before, done = (min(count * self._per_step, len(self._tokens_after)) for count in (steps - 1, steps))
        tokens = int(self._tokens_after[done - 1])
        return {
            "perf/tokens_per_s": (tokens - (int(self._tokens_after[before - 1]) if before else 0)) / seconds,
            "progress/tokens": float(tokens),
            "progress/epoch": float(self._epochs_after[done - 1]),
        }


@dataclass(frozen=True, slots=True)
class ShareOfSteps:
    """What a rank adds to each step: a mean over its own examples, weighed by how much of the step they are.

    Attributes:
        ranks: Those that take each step together.
        weights: For each step that this trainer takes, the share in [0, 1]; over ranks they add up to 1.
    """

    ranks: Ranks
    weights: Sequence[float]

    def add_up(self, step: int, parameters: Sequence[torch.nn.Parameter], *means: float) -> tuple[float, ...]:
        """Replaces gradients by their weighted sum over ranks; returns those of the means."""
        weight = self.weights[step]
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(weight)
        sum_gradients(parameters, self.ranks)
        return self.ranks.total(*(weight * mean for mean in means))


class GradientPenalty(Protocol):
    """A penalty of the weights alone, whose gradient needs no pass through the model."""

    def add(self) -> float:
        """Adds its gradient to those of the weights; returns its value."""
        ...


class OrderedTrainer(Trainer):
    """Takes examples in the order of the data set, and remembers loss and gradient norm of the step under way.

    Stands before one of TRL's trainers among the bases of a class.

    Attributes:
        step_loss: Of the step under way, over all ranks once its gradients are.
        step_penalty: What was added to that loss.
        step_grad_norm: Of that step, before clipping.
        pass_penalty: The part of the last micro-batch's loss that is a penalty.
        share: Of this rank among several; None where it is alone.
        weight_penalty: Added once a step, after the gradients of all ranks; None for none.
    """

    step_loss = 0.0
    step_penalty = 0.0
    step_grad_norm = 0.0
    pass_penalty: torch.Tensor | float = 0.0
    share: ShareOfSteps | None = None
    weight_penalty: GradientPenalty | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; its loss, without penalty, is its share of the mean over the step."""
        loss = super().training_step(*args, **kwargs) - self.pass_penalty
        self.step_loss += loss.item()
        self.step_penalty += float(self.pass_penalty)
        return loss

    def _clip_grad_norm(self, model: Any) -> float:  # noqa: ARG002 - the signature is that of transformers
        """Ours: it leaves gradients as they are where their norm is not finite, so that the first bad one has a name.

        transformers would make all of them NaN. To be removed when it checks the norm before it clips.
        """
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        if self.share is not None:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            means = (self.step_loss, self.step_penalty)
            self.step_loss, self.step_penalty = self.share.add_up(self.state.global_step, parameters, *means)
        if self.weight_penalty is not None:
            self.step_penalty += self.weight_penalty.add()
        self.step_grad_norm = clip_gradients(optimizer, self.args.max_grad_norm)
        return self.step_grad_norm

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(cast(datasets.Dataset, self.train_dataset if train_dataset is None else train_dataset))


class _StepCallback(TrainerCallback):
    """Stops before a bad step, and reports each good one. The signatures are those of transformers."""

    def __init__(self, trainer: OrderedTrainer, first_step: int, on_step: Callable[[StepReport], None]) -> None:
        self._trainer, self._first_step, self._on_step = trainer, first_step, on_step
        self._loss = self._penalty = 0.0

    def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._loss, self._trainer.step_loss = self._trainer.step_loss, 0.0
        self._penalty, self._trainer.step_penalty = self._trainer.step_penalty, 0.0
        model = cast(PreTrainedModel, self._trainer.model)
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        step = self._first_step + state.global_step
        require_finite(step, named, loss=self._loss, penalty=self._penalty, grad_norm=self._trainer.step_grad_norm)

    def on_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Transformers clears the gradients of the model alone; virtual tokens are parameters beside it."""
        cast(torch.optim.Optimizer, self._trainer.optimizer).zero_grad()

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs: dict[str, float] = kwargs["logs"]
        if "loss" in logs:  # The last call of a run has its duration instead.
            steps_done = self._first_step + state.global_step
            # TRL's own loss is that of this rank.
            loss = logs["loss"] if self._trainer.share is None else self._loss
            rates = logs["grad_norm"], logs["learning_rate"]
            self._on_step(StepReport(steps_done, loss, self._penalty, *rates, logs))


def train_in_order(
    backbone: Backbone,
    build: Callable[[tuple[torch.optim.Optimizer, LambdaLR]], OrderedTrainer],
    *,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    first_step: int,
    on_step: Callable[[StepReport], None],
) -> None:
    """Takes every optimizer step of the trainer that `build` makes.

    Args:
        backbone: The model; what of it requires gradients is what trains.
        build: Makes the trainer from optimizer and scheduler.
        optimizer: From `rlhf.optimization`, over the parameters that train.
        schedule: Learning-rate factor of each step of the whole run.
        first_step: Steps that are done already.
        on_step: Called after each step; an exception from it ends training.

    Raises:
        NonFiniteLossError: before the step that a NaN or infinite loss or gradient would have spoiled.
    """
    with _quiet():
        trainer = build((optimizer, LambdaLR(optimizer, lambda step: schedule(first_step + step))))
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(_StepCallback(trainer, first_step, on_step))
        try:
            trainer.train()
        finally:
            _restore_model(backbone)


def trains_in_bfloat16(device: torch.device) -> bool:
    """Whether TRL multiplies matrices in bfloat16 on this device."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def require_context(max_tokens: int, backbone: Backbone) -> None:
    """Refuses examples longer than the model reads.

    Raises:
        ValueError: naming both lengths.
    """
    if max_tokens > backbone.context_tokens:
        virtual = backbone.most_virtual_tokens
        left = f" that model.tuning's {virtual} virtual tokens leave" if virtual else ""
        raise ValueError(
            f"max_tokens={max_tokens} exceeds the context of model.path, {backbone.context_tokens} tokens{left}; "
            "lower it"
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
