"""Configuration of `rlhf ppo`, and which of its parts fit together."""

from typing import Literal

from pydantic import Field, model_validator

from policies.config import FullTuning, HeadTuning, LoraTuning, StrictModel, virtual_tokens_of
from reward.config import RewardSource
from rlhf.config.algorithm import AdaptiveKl, AlgorithmConfig, GaeAdvantages
from rlhf.config.retention import EwcRetention
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig, TrainedModelConfig
from rlhf.runtime.config import CheckpointConfig, ColocatedPlacement, Placement, SplitPlacement
from rollout.config import RolloutConfig, VllmEngineConfig


class CriticConfig(StrictModel):
    """The value function."""

    kind: Literal["auto", "head", "adapter", "model"] = "auto"
    """`head` reads the policy's own hidden states, which then train on both losses, in one pass; `adapter` is an
    adapter of its own on the policy's base, by the method of `model.tuning`; `model` is a second copy of the model, all
    of whose weights train. `auto` is `model` with full tuning, `head` where the policy's output layer alone trains, and
    `adapter` with every other tuning."""
    start: Literal["auto", "reward_model", "zero_head"] = "auto"
    """Initial weights; `auto` gives an adapter those of the reward model where both share a base, else a zero head on
    the policy's base. Only an adapter can start from a reward model."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-4, epsilon=1e-5)
    """Optimizer of the critic."""


class PpoDataConfig(DataConfig):
    """Prompts, and text for PPO-ptx and the alignment tax."""

    pretrain: str | None = None
    """Rows with `text` for PPO-ptx."""
    pretrain_eval: str | None = None
    """Held-out rows with `text`; their perplexity is the alignment tax."""


class PpoConfig(StageConfig):
    """`rlhf ppo`: PPO and PPO-ptx."""

    model: TrainedModelConfig
    """The policy's start; also the reference."""
    data: PpoDataConfig
    """Rows with `prompt`."""
    reward: tuple[RewardSource, ...] = Field(min_length=1)
    """Sources whose weighted sum is the score."""
    rollout: RolloutConfig = RolloutConfig()
    """Sampling."""
    algorithm: AlgorithmConfig = AlgorithmConfig()
    """Losses and penalties."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, epsilon=1e-5)
    """Optimizer of the policy."""
    critic: CriticConfig = CriticConfig()
    """Value function."""
    steps: int = Field(default=100, ge=1)
    """PPO steps: rollout plus update."""
    micro_batch_tokens: int = Field(default=8192, ge=1)
    """Tokens of one forward and backward pass, with padding where the architecture cannot leave it out."""
    activation_checkpointing: bool = False
    """Computes the activations of a layer again in the backward pass instead of keeping them: less memory, and updates
    that take a third more time with full tuning, a half with LoRA."""
    sample_prompts: int = Field(default=8, ge=0)
    """Fixed prompts of `data.eval` whose answers are logged through training."""
    sample_every_steps: int = Field(default=10, ge=1)
    """Steps between those samples (and the alignment tax)."""
    placement: Placement = ColocatedPlacement()
    """Which actors host the roles."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @model_validator(mode="after")
    def _data_for_every_option(self) -> "PpoConfig":
        if self.algorithm.ptx is not None and self.data.pretrain is None:
            raise ValueError("algorithm.ptx needs data.pretrain (rows with `text`)")
        if self.algorithm.ptx is None and self.data.pretrain is not None:
            raise ValueError("data.pretrain is only read by PPO-ptx; set algorithm.ptx or remove it")
        samples = self.rollout.prompts_per_step * self.rollout.responses_per_prompt
        if self.rollout.sampling.min_response_tokens:
            raise ValueError(
                "rollout.sampling.min_response_tokens hides stop tokens from the sampler only, so the policy ratio "
                "would not start at 1; set it to 0 and use algorithm.missing_eos or a length rule"
            )
        kl = self.algorithm.kl
        if isinstance(kl, AdaptiveKl) and kl.horizon <= 0.2 * samples:
            raise ValueError(
                f"algorithm.kl.horizon={kl.horizon:g} is too short for the {samples} samples of a step; "
                f"give more than {0.2 * samples:g} episodes"
            )
        if samples < self.algorithm.minibatches:
            raise ValueError(
                f"algorithm.minibatches={self.algorithm.minibatches} exceeds the {samples} samples of a step"
            )
        return self

    @property
    def critic_kind(self) -> Literal["head", "adapter", "model", "none"]:
        """`critic.kind`, with what `auto` stands for; `none` where advantages need no critic."""
        if not self.has_critic:
            return "none"
        if self.critic.kind != "auto":
            return self.critic.kind
        if isinstance(self.model.tuning, FullTuning):
            return "model"
        return "head" if isinstance(self.model.tuning, HeadTuning) else "adapter"

    @model_validator(mode="after")
    def _critic_fits_the_tuning(self) -> "PpoConfig":
        if not self.has_critic:
            return self
        if self.critic_kind == "model" and self.model.quantization != "none":
            raise ValueError(
                f"critic.kind=model: all weights of a second model would train, but model.quantization="
                f"{self.model.quantization} cannot; set critic.kind=adapter or head, or model.quantization=none"
            )
        tuning = self.model.tuning
        if self.critic_kind == "adapter" and isinstance(tuning, FullTuning):
            raise ValueError(
                "critic.kind=adapter: full tuning would change the base under the adapter; set critic.kind=head or "
                "model, or model.tuning.kind=lora"
            )
        if self.critic_kind == "adapter" and isinstance(tuning, HeadTuning):
            raise ValueError(
                "critic.kind=adapter: with model.tuning.kind=head an adapter is an output layer, which no value reads; "
                "set critic.kind=head or model"
            )
        if self.critic.start == "reward_model" and self.critic_kind == "adapter" and not isinstance(tuning, LoraTuning):
            raise ValueError(
                f"critic.start=reward_model: reward models are LoRA adapters, and model.tuning.kind={tuning.kind} "
                "cannot go on training one; set critic.start=zero_head, or model.tuning.kind=lora"
            )
        if self.critic.start == "reward_model" and self.critic_kind != "adapter":
            raise ValueError(
                f"critic.start=reward_model: a critic of kind {self.critic_kind} cannot take over an adapter; set "
                "critic.start=zero_head, or critic.kind=adapter with model.tuning.kind=lora"
            )
        return self

    @model_validator(mode="after")
    def _tuning_fits_the_layout(self) -> "PpoConfig":
        tuning = self.model.tuning
        is_plain_lora = isinstance(tuning, LoraTuning) and tuning.variant == "plain" and not tuning.embeddings
        if (
            isinstance(self.rollout.engine, VllmEngineConfig)
            and not isinstance(tuning, FullTuning)
            and not is_plain_lora
        ):
            is_lora = isinstance(tuning, LoraTuning)
            variant = f", variant={tuning.variant}, embeddings={str(tuning.embeddings).lower()}" if is_lora else ""
            raise ValueError(
                f"rollout.engine.kind=vllm: vLLM cannot sample from model.tuning.kind={tuning.kind}{variant}; set "
                "rollout.engine.kind=compiled or hf, or model.tuning.kind=lora with variant=plain and "
                "embeddings=false"
            )
        is_sharded = isinstance(self.placement, SplitPlacement) and self.placement.learner.sharding == "full"
        if is_sharded and not isinstance(tuning, FullTuning | LoraTuning):
            raise ValueError(
                f"placement.learner.sharding=full: layers are cut with model.tuning.kind=full or lora, not "
                f"{tuning.kind}; set sharding=none, or another tuning"
            )
        if self.activation_checkpointing and virtual_tokens_of(tuning):
            raise ValueError(
                "activation_checkpointing=true: a layer that is computed again would not see the virtual tokens of "
                f"model.tuning.kind={tuning.kind}; set it to false, or choose a kind without virtual tokens"
            )
        return self

    @property
    def has_critic(self) -> bool:
        """Whether a critic is built; without one, advantages come from the other responses to a prompt."""
        return isinstance(self.algorithm.advantages, GaeAdvantages)

    @model_validator(mode="after")
    def _groups_and_nothing_of_a_critic_without_one(self) -> "PpoConfig":
        if self.has_critic:
            return self
        chosen = f"algorithm.advantages.kind={self.algorithm.advantages.kind}"
        if self.rollout.responses_per_prompt < 2:
            raise ValueError(
                f"rollout.responses_per_prompt={self.rollout.responses_per_prompt}: {chosen} compares the responses to "
                "one prompt and needs at least 2 (4 to 16 are usual); or set algorithm.advantages.kind=gae"
            )
        # What stands at its default is let through: a resolved configuration says everything.
        defaults = AlgorithmConfig()
        settings = {
            "critic": self.critic != CriticConfig(),
            "algorithm.value_clip_range": self.algorithm.value_clip_range != defaults.value_clip_range,
            "algorithm.value_coefficient": self.algorithm.value_coefficient != defaults.value_coefficient,
        }
        for name, is_set in settings.items():
            if is_set:
                raise ValueError(f"{name} sets up a critic, and {chosen} builds none: remove it, or set kind=gae")
        return self

    @model_validator(mode="after")
    def _vllm_has_a_process_of_its_own(self) -> "PpoConfig":
        if isinstance(self.rollout.engine, VllmEngineConfig) and not isinstance(self.placement, SplitPlacement):
            raise ValueError(
                "rollout.engine.kind=vllm: vLLM keeps a model of its own, and placement.kind="
                f"{self.placement.kind} shares one: set placement.kind=split, or rollout.engine.kind=compiled"
            )
        if isinstance(self.rollout.engine, VllmEngineConfig) and self.model.quantization != "none":
            raise ValueError(
                f"rollout.engine.kind=vllm: vLLM would sample from other numbers than those of model.quantization="
                f"{self.model.quantization}; set rollout.engine.kind=compiled, or model.quantization=none"
            )
        return self

    @model_validator(mode="after")
    def _quantized_layers_stay_whole(self) -> "PpoConfig":
        is_cut = isinstance(self.placement, SplitPlacement) and self.placement.learner.sharding == "full"
        if is_cut and self.model.quantization != "none":
            raise ValueError(
                f"placement.learner.sharding=full with model.quantization={self.model.quantization}: what is held in 8 "
                "or 4 bits cannot be cut over ranks; set sharding=none, or quantization=none"
            )
        return self

    @property
    def broadcasts_weights(self) -> bool:
        """Whether new weights reach the rollout workers by a collective (`placement.weight_transport`)."""
        placement = self.placement
        if not isinstance(placement, SplitPlacement) or placement.weight_transport == "object_store":
            return False
        if placement.weight_transport == "collective":
            return True
        has_gpus = all(role.gpus >= 1 for role in (placement.learner, placement.rollout))
        return has_gpus and isinstance(self.model.tuning, FullTuning) and self._obstacle_to_broadcasts is None

    @property
    def _obstacle_to_broadcasts(self) -> str | None:
        if isinstance(self.rollout.engine, VllmEngineConfig):
            return "rollout.engine.kind=vllm takes its weights otherwise"
        if self.rollout.max_policy_age:
            return f"rollout.max_policy_age={self.rollout.max_policy_age} sends weights after the learner has moved on"
        assert isinstance(self.placement, SplitPlacement), "asked of split placement only"
        for name, role in (("learner", self.placement.learner), ("rollout", self.placement.rollout)):
            if role.gpus % 1:
                return f"placement.{name}.gpus={role.gpus:g} shares a GPU, which NCCL refuses"
        if bool(self.placement.learner.gpus) != bool(self.placement.rollout.gpus):
            return "of placement.learner.gpus and placement.rollout.gpus one is 0, and no backend spans both devices"
        return None

    @model_validator(mode="after")
    def _weights_can_be_broadcast(self) -> "PpoConfig":
        if self.broadcasts_weights and (obstacle := self._obstacle_to_broadcasts) is not None:
            raise ValueError(
                f"placement.weight_transport=collective: {obstacle}; set weight_transport=auto or object_store"
            )
        return self

    @model_validator(mode="after")
    def _fisher_information_can_be_had(self) -> "PpoConfig":
        if not isinstance(self.algorithm.retention, EwcRetention):
            return self
        if self.algorithm.retention.data is None:
            raise ValueError(
                "algorithm.retention.data is missing: algorithm.retention.kind=ewc needs old rows (demonstrations, or "
                "rows with `text`); name them, or set kind=l2_sp"
            )
        if isinstance(self.placement, SplitPlacement) and self.placement.learner.sharding == "full":
            raise ValueError(
                "placement.learner.sharding=full: algorithm.retention.kind=ewc takes gradients of whole layers, one "
                "example after the other; set sharding=none, or algorithm.retention.kind=l2_sp"
            )
        return self

    @model_validator(mode="after")
    def _running_ahead_is_possible_and_corrected(self) -> "PpoConfig":
        age = self.rollout.max_policy_age
        if age and self.algorithm.importance_cap is None:
            raise ValueError(
                f"rollout.max_policy_age={age} trains on samples of older policies, which needs truncated importance "
                "sampling: set algorithm.importance_cap (2 is a usual value), or max_policy_age=0"
            )
        if age and not isinstance(self.placement, SplitPlacement):
            raise ValueError(
                f"rollout.max_policy_age={age} needs workers apart from the learner, and "
                f"placement.kind={self.placement.kind} has them in one process: set placement.kind=split, or "
                "max_policy_age=0"
            )
        return self
