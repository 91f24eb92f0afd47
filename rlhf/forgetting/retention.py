"""`retention` of a fine-tuning, ready to train with: what is added to the loss, and what to the gradient."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import Parameter

from policies.causal import CausalPolicy
from rlhf.config import SftConfig
from rlhf.config.retention import KlRetention
from rlhf.conversations import Example
from rlhf.forgetting.old_model import OldModel
from rlhf.forgetting.weight_anchor import WeightAnchor, anchor_weights
from rlhf.runtime.distributed import Ranks


@dataclass(frozen=True, slots=True)
class Penalties:
    """What pulls the model back; all None with replay, whose place is the order of examples, and with `none`.

    Attributes:
        old_model: Added to the loss.
        weights: Added to the gradient.
    """

    old_model: OldModel | None = None
    weights: WeightAnchor | None = None

    @property
    def any(self) -> bool:
        """Whether there is one."""
        return self.old_model is not None or self.weights is not None


def build_penalties(
    config: SftConfig, policy: CausalPolicy, parameters: Sequence[Parameter], old: Sequence[Example], ranks: Ranks
) -> Penalties:
    """Holds on to the model as it is now, before its first step; a resumed run does so before it loads its checkpoint.

    Args:
        config: The run's configuration.
        policy: What trains.
        parameters: Its parameters, with gradients let in.
        old: Examples of `retention.data`.
        ranks: Those that train together.
    """
    retention = config.retention
    if isinstance(retention, KlRetention):
        return Penalties(old_model=OldModel(policy, config.model.tuning, coefficient=retention.coefficient))
    return Penalties(weights=anchor_weights(retention, policy, parameters, old, seed=config.seed, ranks=ranks))
