"""Fixtures that several packages share: a tiny tokenizer and tiny random models, built once a session.

A pytest plugin, registered by `tests/conftest.py`. It is loaded for every test run, so it imports what is heavy only
when a test asks for it.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARCHITECTURES = ("llama", "gpt2", "qwen3", "gpt_neox", "gemma2")
"""Decoders whose bodies, positions, projections and output layers differ."""


@pytest.fixture(scope="session")
def tiny_tokenizer() -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer of 300 tokens: pad 0, bos 1, eos 2."""
    return _tiny_models().build_tokenizer()


@pytest.fixture(scope="session")
def tiny_llama_folder(tiny_tokenizer: "PreTrainedTokenizerBase", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama: hidden 32, 2 layers, context 64, tied embeddings, float32. Never write to it."""
    folder = tmp_path_factory.mktemp("tiny_llama")
    _tiny_models().write_llama(folder, tiny_tokenizer)
    return folder


@pytest.fixture(scope="session")
def tiny_model() -> "Callable[[str], PreTrainedModel]":
    """Builds a fresh random model of one of `ARCHITECTURES` with 300 tokens, the same each time."""
    return lambda architecture: _tiny_models().build_model(architecture, 300)


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real library where it is installed, else what stands in for it."""
    if find_spec("bitsandbytes") is None:
        import_module("tests.fake_bitsandbytes").install(monkeypatch)


def _tiny_models() -> Any:
    return import_module("tests.tiny_models")
