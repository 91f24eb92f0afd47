"""One linear output on hidden states: the head of value and reward models.

Owns the head's shape, initialisation and precision. Which hidden state it reads is decided by `policies.value` and by
the reward model.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """y = w . h + b in float32, whatever the precision of the backbone."""

    def __init__(self, hidden_size: int, *, seed: int | None = None) -> None:
        """A new head on the CPU.

        Args:
            hidden_size: D.
            seed: draws w from N(0, 1 / (D + 1)) and sets b = 0 (Stiennon et al. 2020, appendix B.1); None sets w = 0
                too, so that every output is 0.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))
        if seed is not None:
            noise = torch.randn(hidden_size, generator=torch.Generator().manual_seed(seed))
            self.weight.data = noise / math.sqrt(hidden_size + 1)

    @classmethod
    def from_tensors(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """A head with given values.

        Args:
            weight: (D,), or (1, D) as `nn.Linear` holds it.
            bias: one number; None is 0.
        """
        head = cls(weight.numel())
        head.weight.data = weight.detach().reshape(-1).to("cpu", torch.float32, copy=True)
        if bias is not None:
            head.bias.data = bias.detach().reshape(()).to("cpu", torch.float32, copy=True)
        return head

    def normalized(self, *, mean: float, std: float) -> "ScalarHead":
        """A head whose output is (y - mean) / std: w / std and (b - mean) / std.

        Raises:
            ValueError: if std is not positive.
        """
        if not std > 0:
            raise ValueError(
                f"std={std} of the scores must be above 0; a reward model with constant scores teaches nothing"
            )
        return ScalarHead.from_tensors(self.weight / std, (self.bias - mean) / std)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) hidden states -> (...) float32."""
        return states.float() @ self.weight + self.bias
