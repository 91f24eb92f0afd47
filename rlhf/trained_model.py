"""A model as its optimizer sees it: parameters, float32 masters, moments, schedule, and the count of steps.

The learner has one for the policy and one for the critic. It owns no loss and no batch.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from rlhf.config import OptimizerConfig
from rlhf.master_weights import MasterWeights
from rlhf.optimization import NonFiniteLossError, build_optimizer, build_schedule, optimizer_step
from rlhf.runtime.training_state import TrainingState, load_optimizer_tensors, optimizer_tensors, with_owner


class TrainedModel:
    """The parameters of one model, their float32 masters, optimizer and schedule.

    Attributes:
        name: Of the model, in errors and checkpoints.
        parameters: What the optimizer moves, with the accumulated gradients.
        steps_done: Steps taken or skipped so far, the schedule's time.
    """

    def __init__(
        self, name: str, parameters: Sequence[tuple[str, nn.Parameter]], config: OptimizerConfig, total_steps: int
    ) -> None:
        self.name = name
        self._masters = MasterWeights(parameters)
        self.parameters = self._masters.parameters
        self._config = config
        self._optimizer = build_optimizer(self.parameters, config)
        self._schedule = build_schedule(config, total_steps)
        self.steps_done = 0

    def step(self, loss: float) -> tuple[float, float]:
        """Clips and applies the accumulated gradients; returns (gradient norm before clipping, learning rate).

        Raises:
            NonFiniteLossError: before any weight of this model has changed, naming the model.
        """
        self.collect_gradients()
        try:
            result = optimizer_step(
                self._optimizer, self._config, self._schedule, self.parameters, step=self.steps_done, loss=loss
            )
        except NonFiniteLossError as error:
            raise error.of(self.name) from error
        self._masters.publish()
        self.steps_done += 1
        return result.grad_norm, result.learning_rate

    def collect_gradients(self) -> None:
        """Takes over what a backward pass has left; to be called between passes (`MasterWeights.collect`)."""
        self._masters.collect()

    def clear_gradients(self) -> None:
        """Forgets the accumulated gradients."""
        self._masters.collect()
        self._optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Copies of the accumulated gradients."""
        self._masters.collect()
        return [p.grad.clone() for _, p in self.parameters if p.grad is not None]

    def state(self) -> dict[str, Tensor]:
        """Moments and float32 masters, for a checkpoint; the weights themselves are the model's to save."""
        return {
            **with_owner(f"{self.name}_optimizer", optimizer_tensors(self._optimizer, self.parameters)),
            **with_owner(f"{self.name}_masters", self._masters.state()),
        }

    def load_state(self, state: TrainingState, steps_done: int) -> None:
        """Continues from `state`."""
        load_optimizer_tensors(self._optimizer, self.parameters, state.tensors_of(f"{self.name}_optimizer"))
        self._masters.load_state(state.tensors_of(f"{self.name}_masters"))
        self.steps_done = steps_done
