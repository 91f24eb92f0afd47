"""A model as its optimizer sees it: parameters, gradients, moments, schedule, and the count of steps.

The learner has one for the policy and one for the critic. It owns no loss and no batch.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rlhf.config import OptimizerConfig
from rlhf.mixed_precision_adamw import gradients_to_float32, take_gradients_as_they_come
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.runtime.training_state import load_optimizer_tensors, optimizer_tensors


class TrainedModel:
    """The parameters of one model, their optimizer and schedule.

    Attributes:
        name: Of the model, in errors and checkpoints.
        parameters: What the optimizer moves, with the accumulated gradients.
        steps_done: Steps taken or skipped so far, the schedule's time.
    """

    def __init__(
        self, name: str, parameters: Sequence[tuple[str, nn.Parameter]], config: OptimizerConfig, total_steps: int
    ) -> None:
        self.name = name
        self.parameters = parameters
        self._config = config
        self._optimizer = build_optimizer(parameters, config)
        take_gradients_as_they_come(parameter for _, parameter in parameters)
        self._schedule = build_schedule(config, total_steps)
        self.steps_done = 0

    def step(self, loss: float) -> tuple[float, float]:
        """Clips and applies the accumulated gradients; returns (gradient norm before clipping, learning rate).

        Raises:
            NonFiniteLossError: before any weight of this model has changed, naming the model.
        """
        try:
            result = optimizer_step(
                self._optimizer, self._config, self._schedule, self.parameters, step=self.steps_done, loss=loss
            )
        except NonFiniteLossError as error:
            raise error.of(self.name) from error
        self.steps_done += 1
        return result.grad_norm, result.learning_rate

    def collect_gradients(self) -> None:
        """Takes over what a backward pass has left; to be called between passes (see `gradients_to_float32`)."""
        gradients_to_float32(parameter for _, parameter in self.parameters)

    def clear_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the accumulated gradients, a float32 scalar on their device; 0 where there are none."""
        self.collect_gradients()
        return nn.utils.get_total_norm(
            [parameter.grad for _, parameter in self.parameters if parameter.grad is not None]
        )

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

    def optimizer_state(self) -> dict[str, Tensor]:
        """Moments and, under bfloat16 weights, the rest of their float32 masters, for a checkpoint."""
        return optimizer_tensors(self._optimizer, self.parameters)

    def load_optimizer_state(self, tensors: Mapping[str, Tensor], steps_done: int) -> None:
        """Continues from `optimizer_state`."""
        load_optimizer_tensors(self._optimizer, self.parameters, tensors)
        self.steps_done = steps_done
