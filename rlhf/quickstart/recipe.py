"""The configuration of each stage of the quickstart: the classes that a YAML file fills, tuned for a tiny world.

Owns hyper-parameters and the layout of the run folder. Nothing here runs.
"""

from dataclasses import dataclass
from pathlib import Path

from policies.config import ModelConfig
from reward.config import FunctionSource, ModelSource, RankingsFormat
from rlhf.config import (
    AdaptiveKl,
    AlgorithmConfig,
    CriticConfig,
    DataConfig,
    OptimizerConfig,
    PpoConfig,
    PpoDataConfig,
    PretrainConfig,
    PretrainModelConfig,
    PtxConfig,
    QuickstartConfig,
    RewardConfig,
    RewardDataConfig,
    SftConfig,
    SftDataConfig,
)
from rlhf.runtime.config import CheckpointConfig
from rollout.config import RolloutConfig, SamplingConfig

SEQUENCE_TOKENS = 128
MAX_RESPONSE_TOKENS = 32
MAX_PROMPT_TOKENS = 72
RESPONSES_PER_COMPARISON = 4
GOLD = "rlhf.quickstart.world:gold_scores"

SAMPLING = SamplingConfig(max_response_tokens=MAX_RESPONSE_TOKENS)


@dataclass(frozen=True, slots=True)
class Layout:
    """Names inside the folder of a quickstart."""

    root: Path

    def stage(self, name: str) -> Path:
        """Run folder of a stage."""
        return self.root / name

    def model(self, name: str) -> str:
        """Model folder that a stage leaves behind."""
        return str(self.root / name / "model")

    def data(self, name: str) -> Path:
        """A data file of the world."""
        return self.root / "data" / f"{name}.jsonl"


def pretrain_config(config: QuickstartConfig, layout: Layout) -> PretrainConfig:
    """A small Llama from random weights on stories of the world."""
    return PretrainConfig(
        run_dir=str(layout.stage("pretrain")),
        seed=config.seed,
        tracking=config.tracking,
        model=PretrainModelConfig(architecture=config.architecture, vocabulary_size=config.vocabulary_size),
        data=DataConfig(train=str(layout.data("stories")), eval=str(layout.data("stories-eval"))),
        sequence_tokens=SEQUENCE_TOKENS,
        # A document a sequence: with foreign facts in its context the model learns to copy much later.
        packing="documents",
        sequences_per_step=8,
        steps=config.pretrain_steps,
        eval_every_steps=config.pretrain_steps,
        optimizer=OptimizerConfig(
            learning_rate=1.5e-3, betas=(0.9, 0.95), weight_decay=0.1, warmup_fraction=0.05, schedule="cosine"
        ),
        checkpoint=CheckpointConfig(every_steps=500, keep_last=1),
    )


def sft_config(config: QuickstartConfig, layout: Layout) -> SftConfig:
    """Full tuning on the demonstrations of the six writers."""
    return SftConfig(
        run_dir=str(layout.stage("sft")),
        seed=config.seed,
        tracking=config.tracking,
        model=ModelConfig(path=layout.model("pretrain")),
        data=SftDataConfig(train=str(layout.data("demonstrations")), eval=str(layout.data("demonstrations-eval"))),
        epochs=1,
        examples_per_step=16,
        micro_batch_examples=16,
        max_tokens=SEQUENCE_TOKENS,
        optimizer=OptimizerConfig(learning_rate=6e-4, warmup_fraction=0.05, schedule="cosine"),
        checkpoint=CheckpointConfig(every_steps=500, keep_last=1),
    )


def reward_config(config: QuickstartConfig, layout: Layout) -> RewardConfig:
    """LoRA and a head on the SFT model, from K-wise rankings; centred on the SFT model's own answers."""
    return RewardConfig(
        run_dir=str(layout.stage("reward")),
        seed=config.seed,
        tracking=config.tracking,
        model=ModelConfig(path=layout.model("sft"), tuning=config.tuning),
        data=RewardDataConfig(
            train=str(layout.data("rankings")),
            eval=str(layout.data("rankings-eval")),
            format=RankingsFormat(),
            normalize=str(layout.data("sft-answers")),
        ),
        epochs=2,
        comparisons_per_step=16,
        max_tokens=MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS,
        eval_every_steps=1000,
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_fraction=0.05, schedule="cosine"),
        checkpoint=CheckpointConfig(every_steps=500, keep_last=1),
    )


def ppo_config(config: QuickstartConfig, layout: Layout, name: str, *, mix_pretraining: bool) -> PpoConfig:
    """PPO with LoRA on the SFT model; reward model, critic and reference are adapters of the same base.

    The gold reward stands among the sources with weight 0: it is watched, never trained on.
    """
    return PpoConfig(
        run_dir=str(layout.stage(name)),
        seed=config.seed,
        tracking=config.tracking,
        model=ModelConfig(path=layout.model("sft"), tuning=config.tuning),
        data=PpoDataConfig(
            train=str(layout.data("prompts")),
            eval=str(layout.data("prompts-eval")),
            pretrain=str(layout.data("stories")) if mix_pretraining else None,
            pretrain_eval=f"{layout.data('stories-eval')}[:100]",
        ),
        reward=reward_sources(layout),
        rollout=RolloutConfig(prompts_per_step=64, max_prompt_tokens=MAX_PROMPT_TOKENS, sampling=SAMPLING),
        algorithm=AlgorithmConfig(
            kl=AdaptiveKl(coefficient=0.05, target=8.0, horizon=500),
            epochs=1,
            minibatches=4,
            ptx=PtxConfig(
                coefficient=0.1, sequences_per_minibatch=6, packing="documents", sequence_tokens=SEQUENCE_TOKENS
            )
            if mix_pretraining
            else None,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5),
        critic=CriticConfig(optimizer=OptimizerConfig(learning_rate=1e-3, epsilon=1e-5)),
        steps=config.ppo_steps,
        sample_prompts=8,
        sample_every_steps=max(1, config.ppo_steps // 4),
        checkpoint=CheckpointConfig(every_steps=10, keep_last=1),
    )


def reward_sources(layout: Layout) -> tuple[ModelSource | FunctionSource, ...]:
    """The learned proxy, and the hidden gold reward that only watches."""
    return (
        ModelSource(name="proxy", path=layout.model("reward"), max_tokens=MAX_PROMPT_TOKENS + MAX_RESPONSE_TOKENS),
        FunctionSource(name="gold", function=GOLD, weight=0.0),
    )
