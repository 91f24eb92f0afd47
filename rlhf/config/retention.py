"""What training does to keep what its model knew: `retention` of `rlhf sft`, `algorithm.retention` of `rlhf ppo`."""

from typing import Annotated, Literal

from pydantic import Field

from policies.config import StrictModel


class NoRetention(StrictModel):
    """Nothing."""

    kind: Literal["none"] = "none"
    """Tag of this variant."""


class ReplayRetention(StrictModel):
    """Old examples in every step (experience replay)."""

    kind: Literal["replay"] = "replay"
    """Tag of this variant."""
    data: str | None = None
    """Old rows: demonstrations, as in `data.train`, or rows with `text`, all of whose tokens are learned. Null only in
    `rlhf forgetting`, where it stands for the earlier tasks."""
    share: float = Field(default=0.25, gt=0, lt=1)
    """Share of `examples_per_step` that is old, rounded, at least one. New examples come as often as without it, so
    there are more steps."""


class KlRetention(StrictModel):
    """A KL to the old model on the new examples (Li and Hoiem 2017, in its form over tokens)."""

    kind: Literal["kl"] = "kl"
    """Tag of this variant."""
    coefficient: float = Field(default=1.0, gt=0)
    """Factor of KL(old || new), nats per learned token, beside the cross-entropy."""


class L2SpRetention(StrictModel):
    """A pull of every trained weight towards where it started (Li et al. 2018)."""

    kind: Literal["l2_sp"] = "l2_sp"
    """Tag of this variant."""
    coefficient: float = Field(default=0.1, gt=0)
    """Factor a of a/2 sum (w - w0)^2; with an adapter, of the adapter's own weights."""


class EwcRetention(StrictModel):
    """The same pull, weighed by how much each weight matters to old data (Kirkpatrick et al. 2017)."""

    kind: Literal["ewc"] = "ewc"
    """Tag of this variant."""
    data: str | None = None
    """Old rows, as those of `replay`."""
    coefficient: float = Field(default=100.0, gt=0)
    """Factor l of l/2 sum F (w - w0)^2."""
    examples: int = Field(default=200, ge=1)
    """Old rows that the Fisher information F is estimated from, drawn by the seed: a backward pass each."""


Retention = Annotated[
    NoRetention | ReplayRetention | KlRetention | L2SpRetention | EwcRetention, Field(discriminator="kind")
]
WeightRetention = Annotated[NoRetention | L2SpRetention | EwcRetention, Field(discriminator="kind")]
"""Those that depend on weights alone. What PPO has of the others stands elsewhere: its KL penalty, and PPO-ptx."""
