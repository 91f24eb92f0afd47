"""Configuration of `rlhf reward`: comparisons, losses and the training of a reward model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from policies.config import StrictModel
from reward.config import PairsFormat, PreferenceFormat
from rlhf.config.shared import DataConfig, OptimizerConfig, RewardModelConfig, StageConfig
from rlhf.runtime.config import CheckpointConfig, RanksConfig


class RewardDataConfig(DataConfig):
    """Comparisons, and the texts whose mean score becomes 0."""

    format: PreferenceFormat = PairsFormat()
    """Shape of the rows; `rlhf rankings` makes rankings or pairs of scored responses, votes and battles."""
    normalize: str | None = None
    """Rows with `prompt` and `completion` (demonstrations or SFT outputs) whose mean score becomes 0.

    Null takes the preferred responses of the held-out split."""


class PairwiseLogisticLoss(StrictModel):
    """-log sigmoid of each score difference, mean over the pairs of a prompt (Ouyang et al. 2022, equation 1)."""

    kind: Literal["pairwise_logistic"] = "pairwise_logistic"
    """Tag of this variant."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong."""
    ties: Literal["ignored", "half"] = "ignored"
    """`half` adds each tie as a pair that either wins with probability 0.5; `ignored` leaves ties out."""
    margin_coefficient: float = Field(default=0.0, ge=0)
    """Score units by which a winner should lead, for each unit of label strength (`margin` of a pair; `strengths`, or
    the `score` of responses, of a ranking). 0 leaves strengths out."""
    centering_coefficient: float = Field(default=0.0, ge=0)
    """Factor of (twice the mean score of a prompt)^2, which keeps scores around 0 (Eisenstein et al. 2023)."""


class PlackettLuceLoss(StrictModel):
    """-log probability of the ranking as a series of choices, mean over the choices of a prompt (Xia et al. 2008)."""

    kind: Literal["plackett_luce"] = "plackett_luce"
    """Tag of this variant."""
    centering_coefficient: float = Field(default=0.0, ge=0)
    """Factor of (twice the mean score of a prompt)^2, which keeps scores around 0."""


PreferenceLoss = Annotated[PairwiseLogisticLoss | PlackettLuceLoss, Field(discriminator="kind")]


class RewardConfig(StageConfig):
    """`rlhf reward`: a reward model from ranked responses."""

    model: RewardModelConfig
    """Backbone: any model that transformers loads for sequence classification, encoders included."""
    data: RewardDataConfig
    """Comparisons."""
    loss: PreferenceLoss = PairwiseLogisticLoss()
    """What the scores learn from a comparison; the column `weight` of a row multiplies its loss."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the comparisons."""
    comparisons_per_step: int = Field(default=32, ge=1)
    """Prompts (each with its ranked responses) of one optimizer step."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward and backward pass."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products in training; `auto` is bfloat16 where the hardware has it. Weights, scores and loss
    stay float32."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest prompt plus response; a longer one is a bad row."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    weights: Literal["last", "lowest_loss", "highest_accuracy"] = "last"
    """Which weights are kept: those of the last step, or of the best evaluation.

    What a split chose, it flatters. So one half of the held-out prompts chooses, and the report is about the other
    half; with `last` it is about all of them.
    """
    calibrate: Literal["none", "temperature"] = "none"
    """`temperature` fits the one at which sigmoid(score difference / temperature) is the probability that people agree.

    One half of the held-out prompts is for the fit, the report is about the other half. It is saved with the scale;
    PPO uses it where a source asks for `normalization: logits`.
    """
    ensemble_members: int = Field(default=1, ge=1, le=16)
    """Models to train, with seeds `seed`, `seed + 1`, ...; a source of `kind: ensemble` scores with all of them.

    All but the first have run folders of their own inside `run_dir`: `member-1`, `member-2`, ...
    """
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, warmup_fraction=0.03, schedule="cosine")
    """Optimizer."""
    ranks: RanksConfig = RanksConfig()
    """Processes that train together."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @property
    def splits_held_out(self) -> bool:
        """Whether one half of the held-out prompts is spent on choosing or fitting something."""
        return self.weights != "last" or self.calibrate != "none"

    @model_validator(mode="after")
    def _held_out_where_something_is_chosen(self) -> "RewardConfig":
        if self.splits_held_out and self.data.eval is None:
            raise ValueError(
                f"weights={self.weights} with calibrate={self.calibrate} needs held-out comparisons to choose on: set "
                "data.eval, or take weights=last and calibrate=none"
            )
        return self
