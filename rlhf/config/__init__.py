"""Configuration of every stage, composed from the packages' own classes. Imports nothing heavy.

One class a stage; the keys `model`, `data`, `run_dir` and `seed` mean the same in all of them. Every default stands
here or beside its owner, once. Nothing changes a configuration after it is loaded.

shared      optimizer, data, run folder, the model that trains: what several stages have
pretrain    `rlhf pretrain`
sft         `rlhf sft`
reward      `rlhf reward`: comparisons, losses, training
dpo         `rlhf dpo`
distill     `rlhf distill`
algorithm   losses, penalties and advantages of PPO
ppo         `rlhf ppo`, and which of its parts fit together
eval        `rlhf eval`
text_to_text `rlhf text-to-text`: encoder-decoder models
retention   what fine-tuning and PPO do against forgetting
forgetting  `rlhf forgetting`
answers     `rlhf generate`, `chat`, `export`
classify    `rlhf classify`
methods     `rlhf methods`
quickstart  `rlhf quickstart`
rounds      `rlhf rounds`: who ranks what, and the settings of the stages it runs
"""

from rlhf.config.algorithm import (
    AdaptiveKl,
    Advantages,
    AlgorithmConfig,
    FixedKl,
    GaeAdvantages,
    GrpoAdvantages,
    KlConfig,
    MissingEosConfig,
    PtxConfig,
    RlooAdvantages,
)
from rlhf.config.answers import ChatConfig, ExportConfig, GenerateConfig, GenerateDataConfig
from rlhf.config.classify import ClassifyConfig, ClassifyDataConfig, ClassifySettings
from rlhf.config.distill import DistillConfig
from rlhf.config.dpo import DpoConfig, DpoDataConfig
from rlhf.config.eval import EvalConfig, EvalDataConfig
from rlhf.config.forgetting import ForgettingConfig
from rlhf.config.methods import MethodsConfig
from rlhf.config.ppo import CriticConfig, PpoConfig, PpoDataConfig
from rlhf.config.pretrain import PretrainConfig, PretrainModelConfig, SequencesRamp, SpikeConfig
from rlhf.config.quickstart import QuickstartConfig
from rlhf.config.reward import PairwiseLogisticLoss, PlackettLuceLoss, PreferenceLoss, RewardConfig, RewardDataConfig
from rlhf.config.rounds import CollectConfig, FilesRanker, RoundsConfig, RoundsDataConfig, ScoreRanker
from rlhf.config.sft import SftConfig, SftDataConfig, SftSettings
from rlhf.config.shared import DataConfig, OptimizerConfig, StageConfig, TrainedModelConfig
from rlhf.config.text_to_text import (
    Demonstrations,
    SpanCorruption,
    TextToTextConfig,
    TextToTextDataConfig,
    TextToTextModelConfig,
)

__all__ = [
    "AdaptiveKl",
    "Advantages",
    "AlgorithmConfig",
    "ChatConfig",
    "ClassifyConfig",
    "ClassifyDataConfig",
    "ClassifySettings",
    "CollectConfig",
    "CriticConfig",
    "DataConfig",
    "Demonstrations",
    "DistillConfig",
    "DpoConfig",
    "DpoDataConfig",
    "EvalConfig",
    "EvalDataConfig",
    "ExportConfig",
    "FilesRanker",
    "FixedKl",
    "ForgettingConfig",
    "GaeAdvantages",
    "GenerateConfig",
    "GenerateDataConfig",
    "GrpoAdvantages",
    "KlConfig",
    "MethodsConfig",
    "MissingEosConfig",
    "OptimizerConfig",
    "PairwiseLogisticLoss",
    "PlackettLuceLoss",
    "PpoConfig",
    "PpoDataConfig",
    "PreferenceLoss",
    "PretrainConfig",
    "PretrainModelConfig",
    "PtxConfig",
    "QuickstartConfig",
    "RewardConfig",
    "RewardDataConfig",
    "RlooAdvantages",
    "RoundsConfig",
    "RoundsDataConfig",
    "ScoreRanker",
    "SequencesRamp",
    "SftConfig",
    "SftDataConfig",
    "SftSettings",
    "SpanCorruption",
    "SpikeConfig",
    "StageConfig",
    "TextToTextConfig",
    "TextToTextDataConfig",
    "TextToTextModelConfig",
    "TrainedModelConfig",
]
