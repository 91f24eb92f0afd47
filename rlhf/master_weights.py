"""Float32 masters of weights that are held in less precision (Micikevicius et al. 2018, section 3.1).

Owns the copies that the optimizer moves, the way of gradients to them and of their values back. In bfloat16 itself an
update of less than a 256th of a weight rounds away; at the learning rates of PPO that is nearly all of them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.adapters import copy_exactly


class MasterWeights:
    """What an optimizer moves in the place of `parameters`; a float32 parameter is its own master.

    The gradient of one backward pass waits on the others in their own precision, half the memory, until `collect`; call
    it between passes, so that several are summed in float32.

    Attributes:
        parameters: The masters, under the names of what they stand for.
    """

    def __init__(self, parameters: Sequence[tuple[str, Parameter]]) -> None:
        self._held = {name: parameter for name, parameter in parameters if parameter.dtype != torch.float32}
        self._masters = {name: Parameter(parameter.detach().float()) for name, parameter in self._held.items()}
        self.parameters = [(name, self._masters.get(name, parameter)) for name, parameter in parameters]

    @torch.no_grad()
    def collect(self) -> None:
        """Adds the gradients that a backward pass has left to those of the masters."""
        for name, parameter in self._held.items():
            if parameter.grad is None:
                continue
            master = self._masters[name]
            if master.grad is None:
                master.grad = parameter.grad.float()
            else:
                master.grad += parameter.grad
            parameter.grad = None

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

