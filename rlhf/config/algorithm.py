"""Losses, penalties and advantages of `rlhf ppo`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from policies.config import StrictModel
from rlhf.config.retention import NoRetention, WeightRetention


class FixedKl(StrictModel):
    """A constant coefficient."""

    kind: Literal["fixed"] = "fixed"
    """Tag of this variant."""
    coefficient: float = Field(default=0.05, ge=0)
    """Reward units per nat."""


class AdaptiveKl(StrictModel):
    """A coefficient steered towards a target KL (Ziegler et al. 2019, section 2.2)."""

    kind: Literal["adaptive"] = "adaptive"
    """Tag of this variant."""
    coefficient: float = Field(default=0.05, gt=0)
    """Initial value, reward units per nat."""
    target: float = Field(default=6.0, gt=0)
    """Target KL, nats per sequence."""
    horizon: float = Field(default=10000.0, gt=0)
    """Time scale of the controller, in episodes."""


KlConfig = Annotated[FixedKl | AdaptiveKl, Field(discriminator="kind")]


class PtxConfig(StrictModel):
    """PPO-ptx: language-model loss on pretraining text beside the PPO loss (Ouyang et al. 2022, equation 2)."""

    coefficient: float | None = Field(default=1.0, gt=0)
    """Factor of the per-token mean loss; null where `gradient_ratio` decides. InstructGPT's gamma, 27.8 there with both
    terms of equation 2 summed over sequences, is gamma L / R here: L tokens of a pretraining text, R of a response."""
    gradient_ratio: float | None = Field(default=None, gt=0)
    """Weighs the loss in each minibatch so that its gradient is this many times as long as that of the PPO loss,
    whatever both become during training; with `coefficient=null`."""
    sequences_per_minibatch: int = Field(default=8, ge=1)
    """Pretraining sequences beside each PPO minibatch."""
    packing: Literal["concatenated", "documents"] = "concatenated"
    """As in pretraining: text that is laid out as the model never saw it pulls the policy away for nothing."""
    sequence_tokens: int = Field(default=128, ge=8)
    """Tokens of one pretraining sequence; with `packing=documents` the most it may have."""

    @model_validator(mode="after")
    def _one_weight(self) -> "PtxConfig":
        if (self.coefficient is None) == (self.gradient_ratio is None):
            raise ValueError(
                f"coefficient={self.coefficient} and gradient_ratio={self.gradient_ratio} both say how much the text "
                "counts; give one of them, and null for the other"
            )
        return self


class MissingEosConfig(StrictModel):
    """What happens to the score of a response that the token budget cut off."""

    rule: Literal["penalty", "replace"] = "penalty"
    """`penalty` subtracts `value` from the score; `replace` uses `value` instead of it."""
    value: float = 1.0
    """Reward units; at least 0 for `penalty`."""

    @model_validator(mode="after")
    def _penalty_takes_away(self) -> "MissingEosConfig":
        if self.rule == "penalty" and self.value < 0:
            raise ValueError(f"value={self.value} would reward a cut-off response; a penalty is at least 0")
        return self


class GaeAdvantages(StrictModel):
    """Generalised advantage estimation over the values of a critic (Schulman et al. 2016)."""

    kind: Literal["gae"] = "gae"
    """Tag of this variant."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Bias-variance trade of generalised advantage estimation."""


class RlooAdvantages(StrictModel):
    """Reward of a response minus the mean of the others to its prompt (Ahmadian et al. 2024); there is no critic."""

    kind: Literal["rloo"] = "rloo"
    """Tag of this variant."""


class GrpoAdvantages(StrictModel):
    """Reward of a response, standardised among those to its prompt (Shao et al. 2024); there is no critic.

    The KL penalty stays a part of the reward; the paper has it, as k3, in the loss.
    """

    kind: Literal["grpo"] = "grpo"
    """Tag of this variant."""
    divide_by_std: bool = True
    """False leaves out the division by the group's standard deviation, which weighs prompts of almost equal rewards up
    (Liu et al. 2025, "Dr. GRPO")."""


Advantages = Annotated[GaeAdvantages | RlooAdvantages | GrpoAdvantages, Field(discriminator="kind")]


class AlgorithmConfig(StrictModel):
    """PPO (Schulman et al. 2017) with a KL penalty (Ziegler et al. 2019)."""

    kl: KlConfig = AdaptiveKl()
    """Penalty for leaving the reference policy."""
    advantages: Advantages = GaeAdvantages()
    """How much better than expected a token was: by a critic, or by the other responses to the prompt."""
    epochs: int = Field(default=4, ge=1)
    """Passes over the samples of one step."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps of one pass."""
    clip_range: float = Field(default=0.2, gt=0)
    """Clip of the policy ratio."""
    value_clip_range: float = Field(default=0.2, gt=0)
    """Clip of the change of a value, reward units."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Factor of the value loss."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Bound of the loss for negative advantages (Ye et al. 2020); null leaves it out."""
    max_approx_kl: float | None = Field(default=None, gt=0)
    """Nats per token: a minibatch that finds `policy/approxkl` above it is the last of its step; null sets no bound."""
    importance_cap: float | None = Field(default=None, ge=1)
    """Cap of the truncated importance weight between rollout engine and learner; null leaves it out."""
    missing_eos: MissingEosConfig | None = None
    """Scores of responses that the token budget cut off; null keeps them as they are."""
    ptx: PtxConfig | None = None
    """Pretraining mix; null is plain PPO."""
    retention: WeightRetention = NoRetention()
    """What holds the policy's weights near where they start."""
