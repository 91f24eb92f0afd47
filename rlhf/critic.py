"""The critic of a run: on which model it lives, and what it starts from.

Owns the choice of the design: a head on the policy's trunk, an adapter on its base, or a second model; from the reward
model where both share a base, else from a zero head. What a value is stands in `policies.value`.
"""

import logging

from policies.backbone import Backbone
from policies.config import FullTuning, LoraTuning
from policies.loading import load_backbone
from policies.scalar_head import ScalarHead
from policies.sources import resolve_source
from policies.value import ValueModel
from reward.config import EnsembleSource, ModelSource
from reward.normalization import IDENTITY, Normalizer
from reward.shared_model import SharedParts, shared_parts
from rlhf.config import PpoConfig

logger = logging.getLogger(__name__)

CRITIC_ADAPTER = "critic"


def build_critic(config: PpoConfig, backbone: Backbone, *, policy_adapter: str | None) -> ValueModel:
    """The critic that `config.critic` asks for, before any update.

    Args:
        config: The run's configuration.
        backbone: The policy's; gets the critic's adapter where it is one.
        policy_adapter: The policy's adapter; None where its weights train.

    Raises:
        ValueError: critic.start=reward_model, and no reward model shares the policy's base.
    """
    if config.critic_kind == "adapter":
        return _adapter_critic(config, backbone)
    if config.critic_kind == "head":
        return ValueModel(backbone, adapter=policy_adapter, head=_zero_head(backbone), trains_body=False)
    # An adapter that `model.path` holds cannot lie on weights that train.
    base = config.model.model_copy(update={"path": resolve_source(config.model.path).base})
    own = load_backbone(base, device=backbone.device)
    return ValueModel(own, adapter=None, head=_zero_head(own))


def _adapter_critic(config: PpoConfig, backbone: Backbone) -> ValueModel:
    tuning = config.model.tuning
    assert not isinstance(tuning, FullTuning), "the configuration has refused an adapter on full tuning"
    can_continue = isinstance(tuning, LoraTuning) and config.critic.start != "zero_head"
    found = _reward_model_on(config, backbone) if can_continue else None
    if found is not None:
        return _from_reward_model(backbone, *found)
    if config.critic.start == "reward_model":
        raise ValueError(
            "critic.start=reward_model: no reward model of this run is an adapter on model.path; set critic.start=auto"
        )
    backbone.adapters.add(CRITIC_ADAPTER, tuning, seed=config.seed + 1)
    return ValueModel(backbone, adapter=CRITIC_ADAPTER, head=_zero_head(backbone))


def _reward_model_on(config: PpoConfig, backbone: Backbone) -> tuple[ModelSource | EnsembleSource, SharedParts] | None:
    """The first reward model with weight, or member of an ensemble, that was trained on the policy's base."""
    for source in config.reward:
        if not isinstance(source, ModelSource | EnsembleSource) or not source.weight:
            continue
        for model in (source,) if isinstance(source, ModelSource) else source.members:
            parts = shared_parts(model.path)
            if parts is not None and parts.base_fingerprint == backbone.fingerprint:
                return source, parts
    return None


def _from_reward_model(backbone: Backbone, source: ModelSource | EnsembleSource, parts: SharedParts) -> ValueModel:
    """V_t is the score of what was said before token t, on the scale and with the weight that it has in the reward."""
    scale = _scale(source, parts)
    backbone.adapters.load(CRITIC_ADAPTER, parts.folder)
    score = ScalarHead.from_tensors(parts.head_weight).normalized(mean=scale.mean, std=scale.std)
    head = ScalarHead.from_tensors(source.weight * score.weight, source.weight * score.bias)
    logger.info("the critic starts from the reward model %s", parts.folder)
    return ValueModel(backbone, adapter=CRITIC_ADAPTER, head=head)


def _scale(source: ModelSource | EnsembleSource, parts: SharedParts) -> Normalizer:
    if parts.normalizer is None or source.normalization == "none":
        return IDENTITY
    return parts.normalizer.in_logits() if source.normalization == "logits" else parts.normalizer


def _zero_head(backbone: Backbone) -> ScalarHead:
    return ScalarHead(backbone.hidden_size, seed=None)
