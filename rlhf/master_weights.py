"""Float32 masters of weights that are held in less precision (Micikevicius et al. 2018, section 3.1).

Owns the copies that the optimizer moves, the way of gradients to them and of their values back. In bfloat16 itself an
update of less than a 256th of a weight rounds away; at the learning rates of PPO that is nearly all of them.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.adapters import copy_exactly


class MasterWeights:
    """What an optimizer moves in the place of `parameters`; a float32 parameter is its own master.

    Gradients of the others are summed in float32 over all backward passes, and leave their parameter as soon as they
    are complete.

    Attributes:
        parameters: The masters, under the names of what they stand for.
    """

    def __init__(self, parameters: Sequence[tuple[str, Parameter]]) -> None:
        self._held = {name: parameter for name, parameter in parameters if parameter.dtype != torch.float32}
        self._masters = {name: Parameter(parameter.detach().float()) for name, parameter in self._held.items()}
        self.parameters = [(name, self._masters.get(name, parameter)) for name, parameter in parameters]
        for name, parameter in self._held.items():
            parameter.register_post_accumulate_grad_hook(partial(_hand_over, self._masters[name]))

    @torch.no_grad()
    def publish(self) -> None:
        """Rounds the masters into the weights that the model computes with."""
        for name, parameter in self._held.items():
            parameter.copy_(self._masters[name])

    def state(self) -> dict[str, Tensor]:
        """The masters, for a checkpoint; empty where every parameter is its own."""
        return {name: master.detach() for name, master in self._masters.items()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continues from `state`; the model's own weights are loaded apart.

        Raises:
            ValueError: if names or shapes differ.
        """
        copy_exactly(self._masters, tensors, what="float32 masters")


def _hand_over(master: Parameter, parameter: Tensor) -> None:
    """Adds the gradient that a backward pass has just left on a parameter to its master's."""
    assert parameter.grad is not None, "called behind the accumulation of a gradient"
    if master.grad is None:
        master.grad = parameter.grad.float()
    else:
        master.grad += parameter.grad
    parameter.grad = None
