"""Configuration of `rlhf quickstart`."""

from pydantic import Field

from policies.config import ArchitectureConfig, LoraTuning, StrictModel
from rlhf.runtime.config import TrackingConfig


class QuickstartConfig(StrictModel):
    """`rlhf quickstart`: the whole road on the embedded world."""

    run_dir: str | None = None
    """Folder of the whole chain; each stage has a folder of its own in it. Null takes runs/quickstart, or the first of
    runs/quickstart-2, -3, ... that does not exist."""
    seed: int = Field(default=0, ge=0)
    """Seed of world, weights and sampling."""
    architecture: ArchitectureConfig = ArchitectureConfig(
        hidden_size=192, layers=2, heads=6, intermediate_size=512, context_tokens=128, initial_std=0.05
    )
    """Shape of the model."""
    vocabulary_size: int = Field(default=1024, ge=260)
    """Tokens of the byte-level BPE tokenizer."""
    stories: int = Field(default=12000, ge=100)
    """Pretraining documents."""
    demonstrations: int = Field(default=2560, ge=50)
    """Demonstrations of SFT."""
    pretrain_steps: int = Field(default=1100, ge=1)
    """Optimizer steps of pretraining."""
    ppo_steps: int = Field(default=14, ge=1)
    """Steps of PPO and of PPO-ptx."""
    comparisons: int = Field(default=950, ge=50)
    """Prompts that the simulated labelers rank."""
    eval_prompts: int = Field(default=300, ge=20)
    """Held-out prompts of the final comparison."""
    tuning: LoraTuning = LoraTuning(rank=16, alpha=32)
    """Adapters of reward model, critic and policies."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""
