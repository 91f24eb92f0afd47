"""Configuration of every stage, composed from the packages' own classes. Imports nothing heavy.

One class a stage; the keys `model`, `data`, `run_dir` and `seed` mean the same in all of them. Every default stands
here or beside its owner, once. Nothing changes a configuration after it is loaded.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from policies.config import ArchitectureConfig, FullTuning, LoraTuning, ModelConfig, StrictModel
from reward.config import PairsFormat, PreferenceFormat, RankingsFormat, RewardSource
from rlhf.evaluation.config import BestOfNConfig, Judge, TasksConfig
from rlhf.runtime.config import (
    CheckpointConfig,
    ColocatedPlacement,
    Placement,
    RanksConfig,
    SplitPlacement,
    TrackingConfig,
)
from rollout.config import RolloutConfig, SamplingConfig, VllmEngineConfig


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


def _frozen_where_quantized(model: ModelConfig) -> ModelConfig:
    if model.quantization != "none" and isinstance(model.tuning, FullTuning):
        raise ValueError(
            f"quantization={model.quantization} with tuning.kind=full: what is held in 8 or 4 bits cannot train; set "
            "tuning.kind=lora, or quantization=none"
        )
    return model


TrainedModelConfig = Annotated[ModelConfig, AfterValidator(_frozen_where_quantized)]
"""A model of a stage that trains it."""


class PretrainModelConfig(StrictModel):
    """A decoder to pretrain: from random weights, or continued from a folder."""

    path: str | None = None
    """Folder or hub name to continue from; null starts from `architecture` with random weights."""
    architecture: ArchitectureConfig | None = None
    """Shape of a new model; null when `path` is given."""
    vocabulary_size: int | None = Field(default=None, ge=260)
    """Byte-level BPE tokenizer of this many tokens, trained on `data.train`; null when `path` is given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device; `auto` takes the GPU that the process sees, else the CPU."""

    @model_validator(mode="after")
    def _one_source(self) -> "PretrainModelConfig":
        new = self.architecture is not None and self.vocabulary_size is not None
        if (self.path is None) != new or (self.path and (self.architecture or self.vocabulary_size)):
            raise ValueError("give either path (continue) or both architecture and vocabulary_size (new model)")
        return self


class PretrainConfig(StageConfig):
    """`rlhf pretrain`: causal language modelling on packed text."""

    model: PretrainModelConfig
    """The model to train."""
    data: DataConfig
    """Rows with `text`."""
    packing: Literal["concatenated", "documents"] = "concatenated"
    """`concatenated` fills every sequence with documents laid end to end; `documents` gives each a sequence of its own,
    with nothing foreign in its context: slower, but a small model of short texts learns to copy sooner."""
    sequence_tokens: int = Field(default=256, ge=8)
    """Tokens of one training sequence; with `packing=documents` the most it may have."""
    sequences_per_step: int = Field(default=32, ge=1)
    """Sequences of one optimizer step."""
    micro_batch_tokens: int = Field(default=16384, ge=1)
    """Tokens of one forward and backward pass."""
    steps: int = Field(default=1000, ge=1)
    """Optimizer steps; the data repeats as often as needed."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products in training; `auto` is bfloat16 where the hardware has it. Weights stay float32."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_fraction=0.02, schedule="cosine"
    )
    """GPT-3 style defaults (Brown et al. 2020, appendix B)."""
    ranks: RanksConfig = RanksConfig()
    """Processes that train together."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""


class SftConfig(StageConfig):
    """`rlhf sft`: supervised fine-tuning, loss on completions only."""

    model: TrainedModelConfig
    """The model to tune."""
    data: DataConfig
    """Rows with `prompt` and `completion`, or `messages`."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the data."""
    examples_per_step: int = Field(default=32, ge=1)
    """Examples of one optimizer step."""
    micro_batch_examples: int = Field(default=32, ge=1)
    """Examples of one forward and backward pass; must divide `examples_per_step`."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest example; a longer one is a bad row."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=2e-4, warmup_fraction=0.03, schedule="cosine")
    """Optimizer."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_step(self) -> "SftConfig":
        if self.examples_per_step % self.micro_batch_examples:
            raise ValueError(
                f"micro_batch_examples={self.micro_batch_examples} must divide "
                f"examples_per_step={self.examples_per_step}"
            )
        return self


class RewardDataConfig(DataConfig):
    """Comparisons, and the texts whose mean score becomes 0."""

    format: PreferenceFormat = PairsFormat()
    """Shape of the rows."""
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

    model: TrainedModelConfig
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


class DpoDataConfig(DataConfig):
    """Comparisons of responses to a prompt."""

    format: Annotated[PairsFormat | RankingsFormat, Field(discriminator="kind")] = PairsFormat()
    """Shape of the rows; a ranking gives all its pairs that are not ties. How sure or strong a label is is not read."""


class DpoConfig(StageConfig):
    """`rlhf dpo`: direct preference optimisation (Rafailov et al. 2023), without reward model and rollouts."""

    model: TrainedModelConfig
    """The model to tune; as it is at the start, it is the reference too."""
    data: DpoDataConfig
    """Comparisons."""
    beta: float = Field(default=0.1, gt=0)
    """Reward units per nat: the implicit reward is beta times the log-ratio of policy to reference. Larger values hold
    the policy nearer to the reference."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    pairs_per_step: int = Field(default=32, ge=1)
    """Pairs of one optimizer step."""
    micro_batch_pairs: int = Field(default=16, ge=1)
    """Pairs of one forward and backward pass; must divide `pairs_per_step`."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest prompt plus response; a longer one is a bad row."""
    eval_every_steps: int = Field(default=100, ge=1)
    """Steps between evaluations on `data.eval`; the last step is always evaluated."""
    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=5e-6, warmup_fraction=0.1, schedule="linear")
    """Optimizer; LoRA takes about ten times the rate."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When states are saved."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_step(self) -> "DpoConfig":
        if self.pairs_per_step % self.micro_batch_pairs:
            raise ValueError(
                f"micro_batch_pairs={self.micro_batch_pairs} must divide pairs_per_step={self.pairs_per_step}"
            )
        return self


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


class CriticConfig(StrictModel):
    """The value function."""

    kind: Literal["auto", "head", "adapter", "model"] = "auto"
    """`head` reads the policy's own hidden states, which then train on both losses, in one pass; `adapter` is an
    adapter of its own on the policy's base (LoRA tuning); `model` is a second copy of the model, all of whose weights
    train. `auto` is `adapter` with LoRA tuning and `model` with full tuning."""
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
        return "adapter" if isinstance(self.model.tuning, LoraTuning) else "model"

    @model_validator(mode="after")
    def _critic_fits_the_tuning(self) -> "PpoConfig":
        if not self.has_critic:
            return self
        if self.critic_kind == "model" and self.model.quantization != "none":
            raise ValueError(
                f"critic.kind=model: all weights of a second model would train, but model.quantization="
                f"{self.model.quantization} cannot; set critic.kind=adapter or head, or model.quantization=none"
            )
        if self.critic_kind == "adapter" and not isinstance(self.model.tuning, LoraTuning):
            raise ValueError(
                "critic.kind=adapter: full tuning would change the base under the adapter; set critic.kind=head or "
                "model, or model.tuning.kind=lora"
            )
        if self.critic.start == "reward_model" and self.critic_kind != "adapter":
            raise ValueError(
                f"critic.start=reward_model: a critic of kind {self.critic_kind} cannot take over an adapter; set "
                "critic.start=zero_head, or critic.kind=adapter with model.tuning.kind=lora"
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


class EvalDataConfig(StrictModel):
    """Held-out prompts and text."""

    eval: str
    """Rows with `prompt`."""
    train: str | None = None
    """Training prompts; prompts that stand in both are counted and reported."""
    pretrain_eval: str | None = None
    """Held-out rows with `text` for perplexity."""
    tasks: tuple[str, ...] = ()
    """Files of `question`, `choices` and `answer` (index or text), or of `prompt` and `answer`: each is a task,
    measured before and after."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class EvalConfig(StageConfig):
    """`rlhf eval`: two models or more side by side on the same prompts."""

    model: ModelConfig
    """The candidate."""
    baseline: ModelConfig
    """What it is compared with; also the reference of the KL."""
    models: tuple[ModelConfig, ...] = ()
    """Further models, such as those of runs with other KL coefficients: with the candidate they are points of reward
    over KL."""
    data: EvalDataConfig
    """Prompts and text."""
    reward: tuple[RewardSource, ...] = Field(min_length=1)
    """Judges that score; each is reported by name, the weighted sum decides the win rate."""
    judges: tuple[Judge, ...] = ()
    """Judges that compare two answers, asked in both orders; each has a win rate of its own."""
    proxy: str | None = None
    """Name of the reward source that training maximised: best-of-n chooses by it, and over-optimisation is the others
    over it."""
    best_of_n: BestOfNConfig | None = None
    """What the baseline would reach by choosing among n answers; needs `proxy`."""
    tasks: TasksConfig = TasksConfig()
    """How the rows of `data.tasks` are asked."""
    sampling: SamplingConfig = SamplingConfig()
    """How both models answer."""
    prompts: int | None = Field(default=None, ge=1)
    """How many prompts, from the first; null takes all."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Answers of each model to each prompt."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A longer prompt is a bad row."""
    bootstrap_resamples: int = Field(default=2000, ge=100)
    """Resamples of the 95 % interval."""

    @model_validator(mode="after")
    def _best_of_n_chooses_by_something(self) -> "EvalConfig":
        if self.best_of_n is not None and self.proxy is None:
            raise ValueError("best_of_n chooses by the score of one reward source: name it in proxy")
        return self


class GenerateDataConfig(StrictModel):
    """Prompts to answer."""

    eval: str
    """Rows with `prompt`."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at a bad row and names it; `skip` drops, counts and reports it."""


class GenerateConfig(StageConfig):
    """`rlhf generate`: answers to a file of prompts, printed and written to samples.jsonl."""

    model: ModelConfig
    """The model that answers."""
    data: GenerateDataConfig
    """Prompts."""
    sampling: SamplingConfig = SamplingConfig()
    """How it answers."""
    prompts: int | None = Field(default=None, ge=1)
    """How many prompts, from the first; null takes all."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Responses to each."""
    max_prompt_tokens: int = Field(default=256, ge=1)
    """A longer prompt is a bad row."""


class ChatConfig(StrictModel):
    """`rlhf chat`: talk to a model in the terminal."""

    model: ModelConfig
    """The model that answers."""
    sampling: SamplingConfig = SamplingConfig()
    """How it answers."""
    system: str | None = None
    """System message of a conversation; null for none."""
    conversational: bool = True
    """True renders turns with the chat template; false sends each line as a plain prompt."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling."""


class ExportConfig(StrictModel):
    """`rlhf export`: a plain Hugging Face folder from a model with an adapter."""

    model: ModelConfig
    """Folder of the adapter (or model) to export."""
    run_dir: str
    """Folder to write; refused when it exists and is not empty."""
    tolerance: float = Field(default=1e-3, gt=0)
    """Largest difference of a logit before and after merging; above it nothing is written."""


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
