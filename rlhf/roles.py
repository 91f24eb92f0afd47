"""The four roles of PPO: what one process hosts, and the driver's view of all of them.

`RoleHost` builds any subset of rollout, reward, reference and learner on ONE base model; it is a plain class that a test can build
without Ray. `Roles` is what the driver calls; `open_roles` puts hosts where the placement says. Owns wiring only: what a role computes
stands in `rollout`, `reward`, `policies` and `rlhf.learner`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from policies.causal import CausalPolicy
from policies.loading import Backbone, load_backbone
from policies.reference import ReferencePolicy
from policies.tokenization import load_tokenizer
from policies.value import ValueModel
from reward.composite import build_reward
from reward.interface import RewardOutput, RewardRequest
from rlhf.config import PpoConfig
from rlhf.critic import build_critic
from rlhf.data import load_rows
from rlhf.experience import Experience
from rlhf.learner import Learner
from rlhf.runtime.config import ColocatedPlacement, SplitPlacement
from rlhf.runtime.placement import Resources
from rlhf.runtime.training_state import TrainingState
from rlhf.runtime.workers import LocalWorker, WorkerHandle, fan_out
from rlhf.text_stream import TextStream
from rollout.hf_engine import HfGenerator
from rollout.types import Completion, PerToken, Prompt, RolloutBatch, TokenIds
from rollout.weight_sync import CanaryMismatchError, WeightUpdate, pack
from rollout.worker import RolloutWorker

RoleName = Literal["rollout", "reward", "reference", "learner"]
ALL_ROLES: tuple[RoleName, ...] = ("rollout", "reward", "reference", "learner")

_CANARIES = 2
_CANARY_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Nats; above it, sampler and learner do not hold the same weights."""


class RoleHost:
    """Some of the roles in one process, on one base model.

    Args:
        config: The run's configuration.
        roles: Which ones to build.
        threads: torch threads of this process; None leaves torch's own choice.
    """

    def __init__(self, config: PpoConfig, roles: Sequence[RoleName], *, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._config = config
        policy = None if set(roles) == {"reward"} else load_policy(config)
        if "reward" in roles:
            self._reward = build_reward(config.reward, policy_tokenizer=load_tokenizer(config.model), shared_backbone=policy and policy.backbone)
        if policy is None:
            return
        if "reference" in roles:
            self._reference = build_reference(config, policy, trains_here="learner" in roles)
        if "learner" in roles:
            self._policy = policy
            self._learner = build_learner(config, policy)
        if "rollout" in roles:
            engine = HfGenerator(policy.backbone, adapter=policy.adapter, sampling=config.rollout.sampling, engine=config.rollout.engine)
            self._rollout = RolloutWorker(engine)
