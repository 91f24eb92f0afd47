"""Fixtures of the tests of `policies`: backbones and batches."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.sequences import SequenceBatch
from tests.tiny_models import ragged_batch


@pytest.fixture
def backbone_of(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
) -> Callable[[str], Backbone]:
    """Builds a fresh backbone of an architecture."""
    return lambda architecture: Backbone(tiny_model(architecture), tiny_tokenizer)


@pytest.fixture
def backbone(backbone_of: Callable[[str], Backbone]) -> Backbone:
    """A fresh Llama backbone."""
    return backbone_of("llama")


@pytest.fixture
def batch() -> SequenceBatch:
    """The ragged sequences as one micro-batch."""
    return ragged_batch()
