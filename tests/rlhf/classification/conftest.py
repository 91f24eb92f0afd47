"""A tiny model with labelled texts around it."""

from pathlib import Path
from typing import Any

import pytest

from policies.causal import CausalPolicy
from policies.config import ModelConfig
from policies.loading import load_backbone
from rlhf.classification.texts import LabelledText

TEXTS = [
    LabelledText(str(index), text, label)
    for index, (text, label) in enumerate(
        [
            ("the bird is in the tree", 0),
            ("a cat sat", 1),
            ("rain and rain all day", 0),
            ("the mat", 1),
            ("a dog ran to the hill", 1),
        ]
    )
]


@pytest.fixture
def texts() -> list[LabelledText]:
    return list(TEXTS)


@pytest.fixture
def policy(tiny_llama_folder: Path) -> Any:
    return CausalPolicy(load_backbone(ModelConfig(path=str(tiny_llama_folder))), adapter=None, temperature=1.0)
