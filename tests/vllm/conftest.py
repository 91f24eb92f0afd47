from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from policies.config import ArchitectureConfig
from policies.loading import random_backbone


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A random Llama with heads of 32, the smallest that vLLM's CPU attention has a kernel for."""
    folder = tmp_path_factory.mktemp("llama")
    shape = ArchitectureConfig(hidden_size=128, layers=2, heads=4, key_value_heads=2, context_tokens=64)
    backbone = random_backbone(shape, tiny_tokenizer, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    backbone.model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
