"""A linear output of L labels on hidden states: the head of a classifier.

Owns its shape, initialisation, precision and file. Which hidden state it reads is the caller's business.
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from policies.adapters import copy_exactly


class LabelHead(nn.Module):
    """(..., D) hidden states -> (..., L) logits W h + b in float32, whatever the precision of the backbone."""

    def __init__(self, hidden_size: int, labels: int, *, seed: int) -> None:
        """A new head on the CPU.

        Args:
            hidden_size: D.
            labels: L.
            seed: Draws W from N(0, 1 / (D + 1)), as `policies.scalar_head` does; b = 0.
        """
        super().__init__()
        noise = torch.randn(labels, hidden_size, generator=torch.Generator().manual_seed(seed))
        self.weight = nn.Parameter(noise / math.sqrt(hidden_size + 1))
        self.bias = nn.Parameter(torch.zeros(labels))

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) hidden states -> (..., L) float32."""
        return states.float() @ self.weight.T + self.bias

    def save(self, path: Path) -> None:
        """Writes weight and bias as safetensors."""
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}, path)

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Overwrites the head with what `save` wrote.

        Raises:
            ValueError: the shapes differ.
        """
        copy_exactly(dict(self.named_parameters()), load_file(path), what=str(path))
