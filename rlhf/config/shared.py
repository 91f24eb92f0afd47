"""What several stages share: optimizer, data, run folder, the model that trains."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from policies.config import FullTuning, LoraTuning, ModelConfig, StrictModel
from rlhf.runtime.config import TrackingConfig


class OptimizerConfig(StrictModel):
    """AdamW with a warm-up and a decay."""

    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Exponential decay rates of the first and second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """Term added to the denominator."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
    warmup_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Decay after the warm-up: `linear` to 0, `cosine` to a tenth of the peak, or none."""


class DataConfig(StrictModel):
    """Where rows come from: a local JSON(L)(.gz), Parquet or CSV file, a hub name, or `quickstart/<set>`.

    `[:50%]` or `[100:]` slices.
    """

    train: str
    """Training rows."""
    eval: str | None = None
    """Held-out rows."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class StageConfig(StrictModel):
    """What every training stage has."""

    run_dir: str
    """Folder of this run; refused when it already holds one, unless `--resume`."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, data order and sampling."""
    tracking: TrackingConfig = TrackingConfig()
    """Weights & Biases."""


def _fits_quantization(model: ModelConfig) -> ModelConfig:
    tuning = model.tuning
    if model.quantization != "none" and isinstance(tuning, FullTuning):
        raise ValueError(
            f"quantization={model.quantization} with tuning.kind=full: what is held in 8 or 4 bits cannot train; set "
            "tuning.kind=lora, or quantization=none"
        )
    is_lora = isinstance(tuning, LoraTuning) and tuning.variant in ("plain", "rslora")
    if model.quantization != "none" and not is_lora:
        variant = f", tuning.variant={tuning.variant}" if isinstance(tuning, LoraTuning) else ""
        raise ValueError(
            f"quantization={model.quantization} with tuning.kind={tuning.kind}{variant}: only LoRA adapters, plain or "
            "rslora, lie on weights in 8 or 4 bits; set tuning.kind=lora, or quantization=none"
        )
    return model


TrainedModelConfig = Annotated[ModelConfig, AfterValidator(_fits_quantization)]
"""A model of a stage that trains it."""


def _trains_whole_or_with_lora(model: ModelConfig) -> ModelConfig:
    tuning = model.tuning
    if isinstance(tuning, LoraTuning) and tuning.variant == "pissa":
        raise ValueError("tuning.variant=pissa: PEFT would change the base under a reward model; set variant=plain")
    if not isinstance(tuning, FullTuning | LoraTuning):
        raise ValueError(
            f"tuning.kind={tuning.kind}: a reward model trains all weights, or a LoRA adapter that others can share a "
            "base with; set tuning.kind=lora or full"
        )
    return model


RewardModelConfig = Annotated[TrainedModelConfig, AfterValidator(_trains_whole_or_with_lora)]
"""A model of a stage that trains scores."""
