"""The critic of a run: on which model it lives, and what it starts from.

Owns the choice of the design: an adapter on the policy's base, or with full tuning a second model; from the reward
model where both share a base, else from a zero head. What a value is stands in `policies.value`.
"""

import logging

from policies.config import LoraTuning
from policies.loading import Backbone, load_backbone
from policies.scalar_head import ScalarHead
from policies.value import ValueModel
from reward.config import ModelSource
from reward.normalization import IDENTITY
from reward.shared_model import SharedParts, shared_parts
from rlhf.config import PpoConfig

logger = logging.getLogger(__name__)

CRITIC_ADAPTER = "critic"


def build_critic(config: PpoConfig, backbone: Backbone) -> ValueModel:
    """The critic that `config.critic` asks for, before any update.

    Args:
        config: The run's configuration.
        backbone: The policy's; gets the critic's adapter under LoRA, and is left alone under full tuning.

    Raises:
        ValueError: critic.start=reward_model, and no reward model shares the policy's base.
    """
    if not isinstance(config.model.tuning, LoraTuning):
        _refuse_reward_start(config, "full tuning has a critic with weights of its own; set critic.start=zero_head")
        own = load_backbone(config.model, device=backbone.device)
        return ValueModel(own, adapter=None, head=_zero_head(own))
    found = None if config.critic.start == "zero_head" else _reward_model_on(config, backbone)
    if found is not None:
        return _from_reward_model(backbone, *found)
    _refuse_reward_start(config, "no reward model of this run is an adapter on model.path; set critic.start=auto")
    backbone.adapters.add(CRITIC_ADAPTER, config.model.tuning, seed=config.seed + 1)
    return ValueModel(backbone, adapter=CRITIC_ADAPTER, head=_zero_head(backbone))


def _refuse_reward_start(config: PpoConfig, reason: str) -> None:
    if config.critic.start == "reward_model":
        raise ValueError(f"critic.start=reward_model: {reason}")


def _reward_model_on(config: PpoConfig, backbone: Backbone) -> tuple[ModelSource, SharedParts] | None:
    """The first reward model with weight that was trained on the policy's base."""
    for source in config.reward:
        if isinstance(source, ModelSource) and source.weight:
            parts = shared_parts(source.path)
            if parts is not None and parts.base_fingerprint == backbone.fingerprint:
                return source, parts
    return None


def _from_reward_model(backbone: Backbone, source: ModelSource, parts: SharedParts) -> ValueModel:
    """V_t is the score of what was said before token t, on the scale and with the weight that it has in the reward."""
    scale = (parts.normalizer if source.normalization == "stored" else None) or IDENTITY
    backbone.adapters.load(CRITIC_ADAPTER, parts.folder)
    score = ScalarHead.from_tensors(parts.head_weight).normalized(mean=scale.mean, std=scale.std)
    head = ScalarHead.from_tensors(source.weight * score.weight, source.weight * score.bias)
    logger.info("the critic starts from the reward model %s", parts.folder)
    return ValueModel(backbone, adapter=CRITIC_ADAPTER, head=head)


def _zero_head(backbone: Backbone) -> ScalarHead:
    return ScalarHead(backbone.hidden_size, seed=None)
