"""Which rules a stage gets. Owns no rule."""

from reward.composite import component_names
from rlhf.config import AdaptiveKl, DistillConfig, DpoConfig, PpoConfig, RewardConfig, StageConfig
from rlhf.runtime.health.ppo_drift import (
    ENTROPY_COLLAPSE,
    EOS_RATE_DROP,
    LENGTH_DRIFT,
    NEGATIVE_KL_TREND,
    kl_runaway,
)
from rlhf.runtime.health.ppo_reward import SCORE_FOLLOWS_LENGTH, SCORE_SPREAD, dropped_samples, over_optimisation
from rlhf.runtime.health.ppo_update import (
    CANARY_CREEP,
    CLIP_FRACTION,
    EXPLAINED_VARIANCE,
    RATIO_OUTLIERS,
    first_pass_ratio,
)
from rlhf.runtime.health.rule import Rule
from rlhf.runtime.health.training import (
    NON_FINITE_METRIC,
    TRAINING_STOPPED,
    gradient_spike,
    held_out_rise,
    loss_divergence,
    loss_spike,
)

Rules = tuple[Rule, ...]


def rules_for(config: StageConfig) -> Rules:
    """The rules that watch a run of this configuration."""
    if isinstance(config, PpoConfig):
        return _ppo_rules_of(config)
    if isinstance(config, DpoConfig):
        return dpo_rules()
    if isinstance(config, DistillConfig):
        return distillation_rules(phases=len(config.phase_steps))
    return reward_model_rules() if isinstance(config, RewardConfig) else language_model_rules()


def ppo_rules(
    *,
    samples_per_step: int,
    is_float32: bool = True,
    kl_target: float | None = None,
    watched_sources: tuple[str, ...] = (),
) -> Rules:
    """The rules of PPO, those first that make others moot.

    Args:
        samples_per_step: Responses of one step.
        is_float32: Whether sampler and learner compute in float32.
        kl_target: Of the adaptive controller, nats per sequence; None for a fixed coefficient.
        watched_sources: Names of reward sources of weight 0.
    """
    return (
        first_pass_ratio(is_float32=is_float32),
        NEGATIVE_KL_TREND,
        kl_runaway(kl_target),
        over_optimisation(watched_sources),
        CLIP_FRACTION,
        RATIO_OUTLIERS,
        EXPLAINED_VARIANCE,
        ENTROPY_COLLAPSE,
        EOS_RATE_DROP,
        LENGTH_DRIFT,
        SCORE_FOLLOWS_LENGTH,
        SCORE_SPREAD,
        dropped_samples(samples_per_step),
        CANARY_CREEP,
        gradient_spike("policy/grad_norm", "critic/grad_norm"),
        NON_FINITE_METRIC,
    )


def language_model_rules() -> Rules:
    """The rules of pretraining and SFT."""
    return _supervised_rules(loss="loss/train", held_out="eval/loss", gradient="policy/grad_norm")


def reward_model_rules() -> Rules:
    """The rules of reward models."""
    return _supervised_rules(loss="rm/loss", held_out="rm/eval_loss", gradient="rm/grad_norm")


def dpo_rules() -> Rules:
    """The rules of DPO."""
    return _supervised_rules(loss="rm/loss", held_out="rm/eval_loss", gradient="policy/grad_norm")


def distillation_rules(*, phases: int) -> Rules:
    """The rules of distillation; where a model is cut several times, its loss jumps by design and is not watched."""
    rules = _supervised_rules(loss="loss/train", held_out="eval/teacher_kl", gradient="policy/grad_norm")
    return rules if phases == 1 else (NON_FINITE_METRIC,)


def explained_rules() -> Rules:
    """Every rule that a PPO run may raise, for people to read."""
    return (*ppo_rules(samples_per_step=1), TRAINING_STOPPED)


def _ppo_rules_of(config: PpoConfig) -> Rules:
    kl = config.algorithm.kl
    return ppo_rules(
        samples_per_step=config.rollout.prompts_per_step * config.rollout.responses_per_prompt,
        is_float32=config.model.dtype == "float32",
        kl_target=kl.target if isinstance(kl, AdaptiveKl) else None,
        watched_sources=tuple(
            name
            for name, source in zip(component_names(config.reward), config.reward, strict=True)
            if source.weight == 0
        ),
    )


def _supervised_rules(*, loss: str, held_out: str, gradient: str) -> Rules:
    return (
        loss_spike(loss),
        loss_divergence(loss),
        held_out_rise(held_out),
        gradient_spike(gradient),
        NON_FINITE_METRIC,
    )
