"""The label head: its formula, and that it is saved as it is."""

from pathlib import Path

import pytest
import torch

from policies.label_head import LabelHead


def test_a_label_head_is_affine() -> None:
    head = LabelHead(2, 3, seed=0)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, -2.0], [3.0, 1.0]])
    head.bias.data = torch.tensor([0.5, 0.0, -1.0])
    assert head(torch.tensor([[2.0, 1.0]])).tolist() == [[2.5, -2.0, 6.0]]


def test_a_saved_head_is_the_same(tmp_path: Path) -> None:
    head, other = LabelHead(4, 2, seed=1), LabelHead(4, 2, seed=2)
    head.save(tmp_path / "head.safetensors")
    other.load(tmp_path / "head.safetensors")
    assert torch.equal(head.weight, other.weight)
    with pytest.raises(ValueError, match="weight has shape"):
        LabelHead(5, 2, seed=0).load(tmp_path / "head.safetensors")
