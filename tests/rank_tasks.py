"""What ranks do in tests: functions of `Ranks` that another process can import."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policies.loading import load_backbone
from rlhf.config import PpoConfig, PretrainConfig, RewardConfig, SftConfig
from rlhf.experience import Experience
from rlhf.learner import Learner
from rlhf.optimization import NonFiniteLossError
from rlhf.roles import RoleHost
from rlhf.runtime.distributed import ALONE, Ranks
from rlhf.runtime.training_state import TrainingState
from rlhf.trainers import pretrain as pretraining
from rlhf.trainers import reward, sft
from rollout.types import PerToken
from rollout.weight_sync import WeightUpdate
from tests.tiny_models import randomize
from tests.tiny_ppo import build_learner, snapshot

HELD_OUT = ["the small cat sat", "a dog ran over the hill and far away", "she sang"]


@dataclass
class Outcome:
    """What a learner says and holds after its updates."""

    metrics: list[dict[str, float]]
    values: list[PerToken]
    logprobs: list[PerToken]
    perplexity: float
    state: TrainingState


@dataclass
class Published:
    """What a learner role hands out after an update."""

    values: list[PerToken]
    metrics: dict[str, float]
    buckets: list[WeightUpdate]


def learner_of(settings: Mapping[str, Any], ranks: Ranks = ALONE, *, is_sharded: bool = False) -> Learner:
    """A learner whose adapters have weights that show, the same on every rank."""
    config = PpoConfig.model_validate(settings)
    backbone = load_backbone(config.model)
    learner = build_learner(config, backbone=backbone, ranks=ranks, is_sharded=is_sharded)
    for seed, name in enumerate(backbone.adapters.names):
        randomize(backbone.adapters, name, seed=seed)
    return learner


def outcome_of(learner: Learner, experience: Experience, *, updates: int) -> Outcome:
    """After so many updates."""
    metrics = [learner.update(experience, step=step) for step in range(updates)]
    prompts, responses = experience.prompts, experience.responses
    values, logprobs = learner.values(prompts, responses), learner.logprobs(prompts, responses)
    return Outcome(metrics, values, logprobs, learner.perplexity(HELD_OUT), snapshot(learner))


def update_twice(ranks: Ranks, settings: Mapping[str, Any], experience: Experience, *, is_sharded: bool) -> Outcome:
    """A new learner's outcome."""
    return outcome_of(learner_of(settings, ranks, is_sharded=is_sharded), experience, updates=2)


def resume(
    ranks: Ranks, settings: Mapping[str, Any], experience: Experience, state: TrainingState, *, is_sharded: bool
) -> Outcome:
    """The outcome of one update after a state was loaded."""
    learner = learner_of(settings, ranks, is_sharded=is_sharded)
    learner.load_state(state)
    return outcome_of(learner, experience, updates=1)


def diverge(ranks: Ranks, settings: Mapping[str, Any], experience: Experience) -> tuple[str, bool]:
    """What an update with an advantage that is no number says, and whether the weights are those from before."""
    learner = learner_of(settings, ranks)
    before = snapshot(learner)
    try:
        learner.update(experience, step=0)
    except NonFiniteLossError as error:
        after = snapshot(learner)
        return str(error), all(torch.equal(after.tensors[name], before.tensors[name]) for name in before.tensors)
    return "", False


def publish(ranks: Ranks, settings: Mapping[str, Any], experience: Experience, folder: str) -> Published:
    """A role's update, its weights in buckets of 2000 bytes, and its model in `folder`."""
    host = RoleHost(PpoConfig.model_validate(settings), ("learner",), ranks=ranks)
    metrics = host.update(experience, step=0)
    buckets: list[WeightUpdate] = []
    while not buckets or len(buckets) < buckets[0].buckets:
        host.pack_update(3, len(buckets), 2000)
        buckets.append(host.packed_update())
    host.save_model(str(Path(folder) / "model"))
    return Published(host.values(experience.prompts, experience.responses), metrics, buckets)


def pretrain(ranks: Ranks, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Runs the stage; the first rank leaves the run folder."""
    pretraining.train(PretrainConfig.model_validate(settings), resume=resume, ranks=ranks)


def train_reward(ranks: Ranks, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Runs the stage; the first rank leaves the run folder."""
    reward.train(RewardConfig.model_validate(settings), resume=resume, ranks=ranks)


def finetune(ranks: Ranks, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Runs the stage; the first rank leaves the run folder."""
    sft.train(SftConfig.model_validate(settings), resume=resume, ranks=ranks)


def collect(ranks: Ranks) -> tuple[list[float], list[float], tuple[float, ...], list[list[float]]]:
    """Sum, maximum, total and rows of numbers that differ by rank."""
    added, greatest = torch.tensor([1.0, 10.0 * ranks.index]), torch.tensor([3.0 - ranks.index, 2.0])
    ranks.add_up(added)
    ranks.maximum(greatest)
    own = {0: np.array([1.5, 2.5], np.float32)} if ranks.index else {2: np.array([-4.0], np.float32)}
    own |= {1: np.array([], np.float32)} if ranks.index else {}
    rows = ranks.join_rows(own, [2, 0, 1])
    return added.tolist(), greatest.tolist(), ranks.total(2**40 + ranks.index, 1), [row.tolist() for row in rows]


def compare(ranks: Ranks, digests: list[str]) -> str:
    """What `require_same` says of digests that differ by rank."""
    try:
        ranks.require_same("the model in model.path=m", lambda: digests[ranks.index])
    except ValueError as error:
        return str(error)
    return ""


def flatten(tensors: Mapping[str, Tensor]) -> Tensor:
    """All numbers in one row, in the order of names."""
    return torch.cat([tensors[name].reshape(-1).double() for name in sorted(tensors)])
