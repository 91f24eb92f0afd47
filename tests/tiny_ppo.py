"""Tiny PPO runs: a configuration over tiny random models, a reward model on the policy's base, an experience by hand.

Apart from `fixtures_models`, because its imports are heavy.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import PreTrainedTokenizerBase

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import FullTuning, LoraTuning, ModelConfig
from policies.loading import load_backbone, prepare_policy
from policies.scalar_head import ScalarHead
from policies.value import ValueModel
from reward.model import RewardModel
from reward.normalization import Normalizer
from rlhf.config import PpoConfig
from rlhf.config.retention import EwcRetention
from rlhf.conversations import Example
from rlhf.experience import Experience
from rlhf.learner import Learner
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_state import TrainingState
from rlhf.text_stream import TextStream
from rlhf.trainers import ppo
from rollout.types import PerToken
from tests.tiny_models import RAGGED

PROMPTS = ("the cat", "a dog ran", "the bird is", "once there", "where is", "the rain", "she sang", "a girl")
STORIES = (
    "the small cat sat on the warm mat",
    "a dog ran over the hill",
    "the bird is in the tree",
    "she sang all day",
)
REWARD_SCALE = Normalizer(mean=0.4, std=2.5, count=10, source="test")

_VARIES = ("time/", "perf/", "sync/bytes")

# Adam without memory and with an epsilon far above any gradient: the step is the gradient itself.
STEP_IS_GRADIENT = {
    "learning_rate": 1e6,
    "epsilon": 1e6,
    "betas": [0.0, 0.0],
    "max_grad_norm": 1e9,
    "schedule": "constant",
}

ADVANTAGES = ((1.0, -0.5), (0.7, -1.2, 0.3, 0.9), (-0.8,))
RETURNS = ((0.6, -0.2), (1.1, 0.4, -0.7, 0.2), (0.9,))
"""One number for each response token of `RAGGED`."""
OLD_EXAMPLES = (
    Example(np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True])),
    Example(np.array([9, 4, 3], np.int32), np.array([False, True, True])),
)
"""What EWC takes as old, where a test builds the learner itself."""


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Writes JSON Lines and returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_yaml(folder: Path, settings: Mapping[str, Any]) -> Path:
    """Writes a configuration file and returns its path."""
    path = folder / "ppo.yaml"
    path.write_text(yaml.safe_dump(dict(settings)), encoding="utf-8")
    return path


def write_data(folder: Path) -> dict[str, str]:
    """The data section of `ppo_config`: prompts, and text with a held-out part."""
    return {
        "train": write_rows(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS]),
        "eval": write_rows(folder / "prompts-eval.jsonl", [{"prompt": text} for text in PROMPTS[:2]]),
        "pretrain_eval": write_rows(folder / "stories-eval.jsonl", [{"text": text} for text in STORIES[:2]]),
    }


def with_ptx(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a pretraining mix."""
    pretrain = write_rows(folder / "stories.jsonl", [{"text": text} for text in STORIES])
    return merged(
        config,
        data={"pretrain": pretrain},
        algorithm={"ptx": {"coefficient": 0.5, "sequences_per_minibatch": 2, "sequence_tokens": 16}},
    )


def ppo_settings(folder: Path, model: str | Path, /, **changes: Any) -> dict[str, Any]:
    """The resolved YAML of a PPO run of seconds, in this process; `changes` are merged into it section by section.

    The rule for responses of few words has a spread of scores over the answers of a random model.
    """
    settings: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "seed": 3,
        "model": {"path": str(model), "tuning": {"kind": "lora", "rank": 2}, "device": "cpu"},
        "data": write_data(folder),
        "reward": [{"kind": "length", "maximum_words": 2}],
        "rollout": {"prompts_per_step": 4, "sampling": {"max_response_tokens": 8}},
        "algorithm": {"epochs": 2, "minibatches": 2},
        "optimizer": {"learning_rate": 1e-2, "epsilon": 1e-5},
        "critic": {"optimizer": {"learning_rate": 1e-2, "epsilon": 1e-5}},
        "steps": 3,
        "micro_batch_tokens": 64,
        "sample_prompts": 2,
        "sample_every_steps": 2,
        "checkpoint": {"every_steps": 1},
        "placement": {"kind": "in_process"},
        "tracking": {"wandb": "off"},
    }
    return merged(settings, **changes)


def ppo_config(folder: Path, model: str | Path, /, **changes: Any) -> PpoConfig:
    """`ppo_settings` as a configuration."""
    return PpoConfig.model_validate(ppo_settings(folder, model, **changes))


def merged(settings: Mapping[str, Any], /, **changes: Any) -> dict[str, Any]:
    """A deep copy of `settings` in which sections are merged and everything else is replaced."""
    result = copy.deepcopy(dict(settings))
    for key, value in changes.items():
        mergeable = isinstance(value, dict) and isinstance(result.get(key), dict) and "kind" not in value
        result[key] = merged(result[key], **value) if mergeable else value
    return result


def write_reward_adapter(folder: Path, base: str | Path, *, seed: int = 7) -> Path:
    """A reward model as an adapter on `base`, with weights that show, and a scale that is not the identity."""
    torch.manual_seed(seed)
    config = ModelConfig(path=str(base), tuning=LoraTuning(rank=2), device="cpu")
    model = RewardModel.new(config, seed=seed)
    with torch.no_grad():
        for _, parameter in model.trainable():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    model.save(folder, normalizer=REWARD_SCALE, metadata={})
    return folder


def build_learner(
    config: PpoConfig, *, backbone: Backbone | None = None, ranks: Ranks = ALONE, is_sharded: bool = False
) -> Learner:
    """A learner as the learner role builds it, with a critic, where it has one, that starts from a random head."""
    backbone = load_backbone(config.model) if backbone is None else backbone
    tuning = config.model.tuning
    adapter = prepare_policy(backbone, tuning, seed=config.seed)
    policy = CausalPolicy(backbone, adapter=adapter, temperature=config.rollout.sampling.temperature)
    head = ScalarHead(backbone.hidden_size, seed=5)
    if not config.has_critic:
        critic = None
    elif config.critic_kind == "head":
        critic = ValueModel(backbone, adapter=adapter, head=head, trains_body=False)
    elif isinstance(tuning, FullTuning):
        critic = ValueModel(load_backbone(config.model), adapter=None, head=head)
    else:
        backbone.adapters.add("critic", tuning, seed=config.seed + 1)
        critic = ValueModel(backbone, adapter="critic", head=head)
    ptx = None if config.algorithm.ptx is None else text_stream(config, backbone.tokenizer)
    if is_sharded:
        for model in {part.backbone for part in (policy, critic) if part is not None}:
            model.shard(model.device)
    old = OLD_EXAMPLES if isinstance(config.algorithm.retention, EwcRetention) else ()
    return Learner(policy, critic, config=config, ptx=ptx, old=old, ranks=ranks)


def text_stream(config: PpoConfig, tokenizer: PreTrainedTokenizerBase) -> TextStream:
    """The pretraining mix that `config.algorithm.ptx` asks for, of `STORIES`."""
    assert config.algorithm.ptx is not None, "only PPO-ptx has a pretraining mix"
    return TextStream(STORIES, tokenizer, sequence_tokens=config.algorithm.ptx.sequence_tokens, seed=config.seed)


def experience_for(learner: Learner, *, rows: Sequence[int] = (0, 1, 2), has_critic: bool = True) -> Experience:
    """Some of the `RAGGED` sequences with log-probs and values of the learner itself, and fixed advantages."""
    prompts = [np.array(RAGGED[row][0], dtype=np.int32) for row in rows]
    responses = [np.array(RAGGED[row][1], dtype=np.int32) for row in rows]
    return Experience(
        prompts=prompts,
        responses=responses,
        behavior_logprobs=learner.logprobs(prompts, responses),
        values=learner.values(prompts, responses) if has_critic else (),
        advantages=[_float32(ADVANTAGES[row]) for row in rows],
        returns=[_float32(RETURNS[row]) for row in rows] if has_critic else (),
    )


def snapshot(learner: Learner, *, step: int = 0) -> TrainingState:
    """The learner's state, independent of what it does next."""
    tensors, values = learner.state()
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return TrainingState(step, copies, {"learner": copy.deepcopy(values)})


def largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference over tensors of the same names."""
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _float32(numbers: Sequence[float]) -> PerToken:
    return np.array(numbers, dtype=np.float32)


def run_ppo(config: PpoConfig, *, resume: bool = False) -> RunFiles:
    """Runs PPO and returns the files it left."""
    ppo.run(config, resume=resume)
    return RunFiles(config.run_dir)


def metrics_of(run: RunFiles) -> list[dict[str, Any]]:
    """The metrics lines, as numbers that can be computed with."""
    return [dict(row) for row in run.read_metrics()]


def comparable(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Metrics without what depends on the clock or on how weights travel."""
    return [{key: value for key, value in row.items() if not key.startswith(_VARIES)} for row in rows]
