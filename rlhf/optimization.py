"""How weights move: AdamW's parameter groups, learning-rate schedule, gradient clipping, stop on a non-finite loss.

Every training stage takes its optimizer steps through this file, so a schedule, a clip or a NaN means the same
everywhere. It owns no loop and no loss.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import nn

from rlhf.config import OptimizerConfig
from rlhf.mixed_precision_adamw import MixedPrecisionAdamW

Schedule = Callable[[int], float]
NormOf = Callable[[Sequence[nn.Parameter]], torch.Tensor]
NamedParameters = Sequence[tuple[str, nn.Parameter]]

COSINE_FLOOR = 0.1
"""Where the cosine ends, as a share of the peak learning rate (Brown et al. 2020, appendix B)."""


class NonFiniteLossError(RuntimeError):
    """A loss or gradient norm became NaN or infinite; the weights are those before the step that failed.

    Attributes:
        quantity: What was not finite, e.g. `loss`.
        value: What it was.
        step: The optimizer step, from 0, that was not taken.
        tensor: The first tensor that is not finite, as `first_non_finite` found it; None where all are.
        finding: Quantity, value and tensor, without what to do about them.
    """

    resuming_repeats_it: ClassVar[bool] = True
    """The command line offers --resume after other failures, not after this one."""

    def __init__(self, quantity: str, value: float, step: int, tensor: str | None = None) -> None:
        found = "" if tensor is None else f" (first tensor that is not finite: {tensor})"
        self.finding = f"{quantity} is {value}{found}"
        super().__init__(
            f"{quantity} is {value} at step {step}; training stopped before it reached the weights{found}: start "
            "another run_dir with a lower optimizer.learning_rate or max_grad_norm, or look for extreme values in the "
            "data"
        )
        self.quantity, self.value, self.step, self.tensor = quantity, value, step, tensor

    def of(self, model: str) -> Self:
        """The same error, of one of several models."""
        return type(self)(f"{model} {self.quantity}", self.value, self.step, self.tensor)

    def __reduce__(self) -> tuple[type["NonFiniteLossError"], tuple[str, float, int, str | None]]:
        """Rebuild from the arguments; by default an exception is pickled with its message only."""
        return type(self), (self.quantity, self.value, self.step, self.tensor)


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimizer step.

    Attributes:
        grad_norm: Global L2 norm of the gradients before clipping.
        learning_rate: Rate that the step was taken with.
    """

    grad_norm: float
    learning_rate: float


def build_optimizer(named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter 2019), fused, with weight decay on matrices and none on vectors and scalars.

    Parameters in bfloat16 move as their float32 masters would, on gradients summed in float32 (`MixedPrecisionAdamW`).
    Biases and norm gains are vectors: decaying them pulls a layer's scale to 0 without regularising anything
    (Brown et al. 2020 and its descendants). Parameters that do not require a gradient are left out.

    Raises:
        ValueError: If nothing is left to train.
    """
    trained = [parameter for _, parameter in named_parameters if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter requires a gradient; nothing would train: check model.tuning")
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [{**group, "initial_lr": config.learning_rate} for group in groups if group["params"]]
    is_mixed = any(parameter.dtype != torch.float32 for parameter in trained)
    kind = MixedPrecisionAdamW if is_mixed else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.betas, eps=config.epsilon, fused=True)


def build_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """Factor of the peak learning rate for step t = 0 .. total_steps - 1.

    Warm-up over W = ceil(warmup_fraction * total_steps) steps: (t + 1) / W, so the first step moves and step W - 1 has
    the peak. Then, with p = (t - W) / (total_steps - W): linear 1 - p; cosine 0.1 + 0.9 * (1 + cos(pi p)) / 2;
    constant 1.
    """
    # Products such as 0.07 * 100 land just above an integer; without the rounding they would gain a step.
    warmup = math.ceil(round(config.warmup_fraction * total_steps, 6))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "linear":
            return 1.0 - progress
        return COSINE_FLOOR + (1.0 - COSINE_FLOOR) * (1.0 + math.cos(math.pi * progress)) / 2

    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to `factor` of its peak rate; returns the rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return optimizer.param_groups[0]["lr"]


def gradient_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """L2 norm of all gradients together, a float32 scalar; 0 where there is none."""
    # One by one, because torch returns the norm of a bfloat16 gradient in bfloat16.
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in parameters if p.grad is not None]
    return torch.nn.utils.get_total_norm(norms)


def clip_gradients(optimizer: torch.optim.Optimizer, max_grad_norm: float, *, norm_of: NormOf = gradient_norm) -> float:
    """Scale the optimizer's gradients down to a global L2 norm of at most `max_grad_norm`; returns the norm before.

    Gradients whose norm is not finite stay as they are: scaled by it all of them would be NaN, and none could be named.

    Args:
        optimizer: From `build_optimizer`.
        max_grad_norm: See above.
        norm_of: The norm, where the optimizer holds only parts of what trains.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = norm_of(parameters)
    if math.isfinite(value := norm.item()):
        torch.nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    return value


def first_non_finite(named_parameters: NamedParameters) -> str | None:
    """Where NaN or infinity shows first: "weight <name>" or "gradient of <name>"; None where all tensors are finite.

    A weight comes before any gradient, in the model's order, which is that of the forward pass. Gradients are looked at
    from the last parameter to the first, the order of the backward pass: those further down received NaN from the first
    bad one. Last come gradients whose numbers are finite and whose norm is not, because their squares are too large.
    """
    for name, parameter in named_parameters:
        if not torch.isfinite(parameter).all():
            return f"weight {name}"
    gradients = [(name, p.grad) for name, p in reversed(named_parameters) if p.grad is not None]
    for name, gradient in gradients:
        if not torch.isfinite(gradient).all():
            return f"gradient of {name}"
    for name, gradient in gradients:
        if not torch.isfinite(torch.linalg.vector_norm(gradient)):
            return f"norm of the gradient of {name}"
    return None


def require_finite(step: int, named_parameters: NamedParameters, **quantities: float) -> None:
    """Stop training where a quantity is NaN or infinite. The tensors are searched only then.

    Raises:
        NonFiniteLossError: Naming the first quantity that is not finite, and the first such tensor.
    """
    for quantity, value in quantities.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(quantity, value, step, first_non_finite(named_parameters))


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    config: OptimizerConfig,
    schedule: Schedule,
    named_parameters: NamedParameters,
    *,
    step: int,
    loss: float,
    norm_of: NormOf = gradient_norm,
) -> StepResult:
    """Check, clip and apply the accumulated gradients, then clear them.

    A non-finite loss or gradient norm raises before any weight or moment has changed, so the state can still be saved.

    Args:
        optimizer: From `build_optimizer`.
        config: Its configuration; owns the clip.
        schedule: From `build_schedule`.
        named_parameters: What trains, in the model's order, to name the tensor that is not finite.
        step: Index of this step, from 0.
        loss: Loss of the whole step, for the check.
        norm_of: See `clip_gradients`.

    Raises:
        NonFiniteLossError: If `loss` or the gradient norm is NaN or infinite.
    """
    learning_rate = set_learning_rate(optimizer, schedule(step))
    grad_norm = clip_gradients(optimizer, config.max_grad_norm, norm_of=norm_of)
    require_finite(step, named_parameters, loss=loss, grad_norm=grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(grad_norm, learning_rate)
