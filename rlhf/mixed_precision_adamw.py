"""AdamW in float32 on parameters that are held in bfloat16 (Micikevicius et al. 2018, section 3.1).

In bfloat16 itself an update of less than a 256th of a weight rounds away; at the learning rates of PPO that is nearly
all of them. Here every parameter has a float32 master, of which the parameter is the upper half: the other 16 bits, a
`residual`, are optimizer state like the moments, so that a checkpoint holds all of it and the master costs 2 bytes a
weight instead of 4.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

_CHUNK_ON_CPU, _CHUNK = 2**18, 2**26
"""Elements that are moved at a time: temporary tensors stay in the processor's cache, and small on a GPU."""


class MixedPrecisionAdamW(torch.optim.AdamW):
    """AdamW whose bfloat16 parameters move as their float32 masters would; float32 ones are left to torch.

    Gradients are summed in float32.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, of which each shall have a float32 gradient.

        What stays for the whole run is allocated here: in the first step it would lie among the activations, and they
        would need a second place in every later one.
        """
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            parameter.grad_dtype = torch.float32
            if parameter.dtype == torch.bfloat16:
                self.state[parameter] = _new_state(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Moves what has a gradient, in either precision; the gradients of bfloat16 parameters are gone afterwards."""
        assert closure is None, "nothing here evaluates a loss again"
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.dtype == torch.bfloat16:
                    self._move(parameter, group)
                    parameter.grad = None
        super().step()

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        assert parameter.grad is not None, "only what has a gradient moves"
        columns = (parameter.data, parameter.grad, state["residual"], state["exp_avg"], state["exp_avg_sq"])
        for weight, gradient, residual, average, square in zip(*map(_chunks, columns), strict=True):
            master = join(weight, residual)
            beta1, beta2 = group["betas"]
            adamw(
                [master],
                [gradient.float()],
                [average],
                [square],
                [],
                [state["step"].clone()],  # Counted up in place, once for each chunk.
                fused=True,
                amsgrad=False,
                beta1=beta1,
                beta2=beta2,
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            split(master, into=(weight, residual))
        state["step"] += 1


def _new_state(parameter: nn.Parameter) -> dict[str, Tensor]:
    moments = {name: torch.zeros_like(parameter, dtype=torch.float32) for name in ("exp_avg", "exp_avg_sq")}
    residual = torch.zeros_like(parameter, dtype=torch.int16)
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, **moments, "residual": residual}


def take_gradients_as_they_come(parameters: Iterable[nn.Parameter]) -> None:
    """Leaves the gradient of one backward pass in the precision of its parameter, for half the memory until the step.

    Whoever asks for this calls `gradients_to_float32` between two passes.
    """
    for parameter in parameters:
        parameter.grad_dtype = None


@torch.no_grad()
def gradients_to_float32(parameters: Iterable[nn.Parameter]) -> None:
    """What a backward pass has left, in float32, so that another one adds to it in float32."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.dtype != torch.float32:
            parameter.grad = parameter.grad.float()


def join(upper: Tensor, residual: Tensor) -> Tensor:
    """bfloat16 and int16 halves -> the float32 master: its bits are 2^16 * bits(upper) + residual."""
    return upper.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(residual).view(torch.float32)


def split(master: Tensor, *, into: tuple[Tensor, Tensor]) -> None:
    """Inverse of `join`, exactly: the nearest bfloat16 number, and how many float32 numbers the master is above it."""
    upper, residual = into
    bits = master.view(torch.int32)
    rounded = bits.add(2**15).bitwise_right_shift_(16)
    upper.view(torch.int16).copy_(rounded)
    residual.copy_(bits - rounded.bitwise_left_shift_(16))


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.view(-1).split(_CHUNK_ON_CPU if tensor.device.type == "cpu" else _CHUNK)
