"""A model as its optimizer sees it: parameters, gradients, moments, schedule, and the count of steps.

The learner has one for the policy and one for the critic. It owns no loss and no batch. Of a model whose layers are
cut over ranks the optimizer sees this rank's parts, as plain tensors; what is whole moves alike on every rank.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from policies.sharding import part, part_of, wrap_part
from rlhf.config import OptimizerConfig
from rlhf.gradient_sums import sum_gradients
from rlhf.mixed_precision_adamw import gradients_to_float32, take_gradients_as_they_come
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, gradient_norm, optimizer_step
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.training_state import load_optimizer_tensors, optimizer_tensors


class TrainedModel:
    """The parameters of one model, their optimizer and schedule.

    Attributes:
        name: Of the model, in errors and checkpoints.
        parameters: What the optimizer moves, with the accumulated gradients.
        steps_done: Steps taken or skipped so far, the schedule's time.
    """

    def __init__(
        self,
        name: str,
        parameters: Sequence[tuple[str, nn.Parameter]],
        config: OptimizerConfig,
        total_steps: int,
        *,
        ranks: Ranks = ALONE,
    ) -> None:
        self.name = name
        self._ranks = ranks
        self._of_model = parameters
        self.parameters = [(key, _part_as_parameter(parameter)) for key, parameter in parameters]
        self._cut = {id(own) for own, of_model in self._pairs() if own is not of_model}
        self._config = config
        self._optimizer = build_optimizer(self.parameters, config)
        take_gradients_as_they_come(parameter for _, parameter in self.parameters)
        self._schedule = build_schedule(config, total_steps)
        self.steps_done = 0

    def step(self, loss: float) -> tuple[float, float]:
        """Clips and applies the accumulated gradients; returns (gradient norm before clipping, learning rate).

        Raises:
            NonFiniteLossError: before any weight of this model has changed, naming the model.
        """
        try:
            result = optimizer_step(
                self._optimizer,
                self._config,
                self._schedule,
                self.parameters,
                step=self.steps_done,
                loss=loss,
                norm_of=self._norm_of,
            )
        except NonFiniteLossError as error:
            raise error.of(self.name) from error
        self.steps_done += 1
        return result.grad_norm, result.learning_rate

    def collect_gradients(self) -> None:
        """Takes over what a backward pass has left; to be called between passes (see `gradients_to_float32`)."""
        for own, of_model in self._pairs():
            if id(own) in self._cut and of_model.grad is not None:
                _take_over(own, part(of_model.grad))
                of_model.grad = None
        gradients_to_float32(parameter for _, parameter in self.parameters)

    def clear_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)
        for _, of_model in self._of_model:
            of_model.grad = None

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the accumulated gradients, a float32 scalar on their device; 0 where there are none."""
        self.collect_gradients()
        return self._norm_of([parameter for _, parameter in self.parameters])

    def take_gradients(self) -> list[Tensor | None]:
        """Moves the accumulated gradients out, in the order of `parameters`; what comes next accumulates from none."""
        self.collect_gradients()
        taken = [parameter.grad for _, parameter in self.parameters]
        self.clear_gradients()
        return taken

    def add_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Puts back what `take_gradients` has moved out, added to what has come since."""
        self.collect_gradients()
        for (_, parameter), gradient in zip(self.parameters, gradients, strict=True):
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def scale_gradients(self, factor: Tensor) -> None:
        """Multiplies the accumulated gradients by a scalar."""
        self.collect_gradients()
        for _, parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def sum_gradients(self) -> None:
        """Adds up what the ranks have accumulated; afterwards each has the same. Cut layers have done so themselves."""
        if self._ranks.is_alone:
            return
        self.collect_gradients()
        sum_gradients([parameter for _, parameter in self.parameters if id(parameter) not in self._cut], self._ranks)

    def total(self, numbers: Tensor) -> Tensor:
        """Sum of one number for each parameter, (P,), which counts this rank's part of those that are cut."""
        is_cut = torch.tensor([id(own) in self._cut for _, own in self.parameters], device=numbers.device)
        of_parts = numbers[is_cut].sum()
        if self._cut:
            self._ranks.add_up(of_parts)
        return numbers[~is_cut].sum() + of_parts

    def optimizer_state(self) -> dict[str, Tensor]:
        """Moments and, under bfloat16 weights, the rest of their float32 masters, for a checkpoint; cut as they."""
        cut_as = dict(self._of_model)
        own = optimizer_tensors(self._optimizer, self.parameters)
        return {path: wrap_part(tensor, like=cut_as[_parameter_of(path)]) for path, tensor in own.items()}

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], steps_done: int) -> None:
        """Continues from `optimizer_state`, made whole."""
        cut_as = dict(self._of_model)
        own = {path: part_of(tensor, like=cut_as[_parameter_of(path)]) for path, tensor in tensors.items()}
        load_optimizer_tensors(self._optimizer, self.parameters, own)
        self.steps_done = steps_done

    def _pairs(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        """What the optimizer moves, and what it is of the model."""
        return ((own, model) for (_, own), (_, model) in zip(self.parameters, self._of_model, strict=True))

    def _norm_of(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """As `optimization.gradient_norm`, over the parts of all ranks."""
        if not self._cut:
            return gradient_norm(parameters)
        of_whole = gradient_norm([parameter for parameter in parameters if id(parameter) not in self._cut])
        of_parts = gradient_norm([parameter for parameter in parameters if id(parameter) in self._cut]).square()
        self._ranks.add_up(of_parts)
        return (of_whole.to(of_parts.device).square() + of_parts).sqrt()


def _part_as_parameter(parameter: nn.Parameter) -> nn.Parameter:
    own = part(parameter)
    return parameter if own is parameter else nn.Parameter(own.detach())


def _take_over(own: nn.Parameter, gradient: Tensor) -> None:
    own.grad = gradient.float() if own.grad is None else own.grad.add_(gradient)


def _parameter_of(path: str) -> str:
    return path.rpartition("/")[0]
