# torch.nn.Module types its attributes as Tensor | Module, which these tests know better.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false
"""Passes over the trunk in an update: one for both losses where they share it, and what may be left out or repeated."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.backbone import Backbone
from policies.loading import load_backbone
from rlhf.config import PpoConfig
from rlhf.experience import Experience
from rlhf.learner import Learner
from tests.tiny_models import randomize
from tests.tiny_ppo import (
    STEP_IS_GRADIENT,
    build_learner,
    experience_for,
    largest_difference,
    merged,
    ppo_settings,
    snapshot,
)

FULL = {"kind": "full"}


@pytest.fixture
def settings(tmp_path: Path, tiny_llama_folder: Path) -> dict[str, Any]:
    once = {"epochs": 1, "minibatches": 1}
    gradient = {"optimizer": STEP_IS_GRADIENT}
    return ppo_settings(tmp_path, tiny_llama_folder, algorithm=once, critic=gradient, **gradient)


def learner_on(settings: Mapping[str, Any], **changes: Any) -> tuple[Learner, Backbone]:
    config = PpoConfig.model_validate(merged(settings, **changes))
    backbone = load_backbone(config.model)
    learner = build_learner(config, backbone=backbone)
    for seed, name in enumerate(backbone.adapters.names):
        randomize(backbone.adapters, name, seed=seed)
    return learner, backbone


def step_of(learner: Learner, experience: Experience) -> dict[str, Tensor]:
    before = snapshot(learner).tensors
    learner.update(experience, step=0)
    after = snapshot(learner).tensors
    return {name: tensor - before[name] for name, tensor in after.items() if "optimizer" not in name}


def passes_over(backbone: Backbone, learner: Learner, experience: Experience) -> int:
    """How often an update runs the first decoder layer forward."""
    calls: list[object] = []
    handle = backbone.model.base_model.layers[0].register_forward_pre_hook(lambda layer, _: calls.append(layer))
    learner.update(experience, step=0)
    handle.remove()
    return len(calls)


@pytest.mark.parametrize(("kind", "expected"), [("head", 1), ("adapter", 2)])
def test_a_shared_trunk_is_passed_once_for_both_losses(settings: dict[str, Any], kind: str, expected: int) -> None:
    learner, backbone = learner_on(settings, critic={"kind": kind})
    assert passes_over(backbone, learner, experience_for(learner)) == expected


@pytest.mark.parametrize("tuning", [{"kind": "lora", "rank": 2}, FULL], ids=["lora", "full"])
def test_the_trunk_descends_the_policy_loss_plus_the_coefficient_times_the_value_loss(
    settings: dict[str, Any], tuning: dict[str, Any]
) -> None:
    head = merged(settings, critic={"kind": "head", "optimizer": STEP_IS_GRADIENT}, model={"tuning": tuning})
    coefficients = [1e-12, 0.3, 0.6]
    steps: list[dict[str, Tensor]] = []
    for coefficient in coefficients:
        learner, _ = learner_on(head, algorithm={"value_coefficient": coefficient})
        steps.append(step_of(learner, experience_for(learner)))
    policy_alone, once, twice = steps
    trunk = [name for name in once if name.startswith("policy.")]
    difference = {name: once[name] - policy_alone[name] for name in trunk}
    doubled = {name: (twice[name] - policy_alone[name]) / 2 for name in trunk}
    scale = max(float(tensor.abs().max()) for tensor in difference.values())
    assert scale > 1e-2
    assert largest_difference(difference, doubled) < 1e-3 * scale
    assert float(once["critic.head.weight"].abs().max()) > 1e-2


def test_the_values_of_a_head_are_of_the_policy_as_it_is_now(settings: dict[str, Any]) -> None:
    learner, _ = learner_on(settings, critic={"kind": "head"})
    experience = experience_for(learner)
    learner.update(experience, step=0)
    values = learner.values(experience.prompts, experience.responses)
    assert all(not np.allclose(now, before) for now, before in zip(values, experience.values, strict=True))


@pytest.mark.parametrize("kind", ["head", "adapter"])
def test_checkpointed_activations_change_nothing_and_cost_a_pass(settings: dict[str, Any], kind: str) -> None:
    kept, _ = learner_on(settings, critic={"kind": kind})
    again, backbone = learner_on(settings, critic={"kind": kind}, activation_checkpointing=True)
    experience = experience_for(kept)
    assert passes_over(backbone, again, experience) == (1 if kind == "head" else 2)
    kept.update(experience, step=0)
    assert largest_difference(snapshot(again).tensors, snapshot(kept).tensors) == 0.0


def test_bfloat16_weights_learn_from_steps_far_below_their_precision(settings: dict[str, Any]) -> None:
    tiny = {"learning_rate": 1e-5, "epsilon": 1e-8}
    learner, _ = learner_on(
        settings, model={"tuning": FULL, "dtype": "bfloat16"}, optimizer=tiny, critic={"optimizer": tiny}
    )
    experience = experience_for(learner)
    before = {name: tensor.clone() for name, tensor in learner.publish().items()}
    learner.update(experience, step=0)
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = learner.publish()[name] != before[name]
    assert moved.float().mean() < 0.2
    # What bfloat16 cannot show is not lost: the masters have moved by one learning rate nearly everywhere.
    residual = snapshot(learner).tensors[f"policy_optimizer.{name}/residual"]
    assert ((residual != 0) | moved).float().mean() > 0.95


def test_gradients_of_bfloat16_weights_are_summed_over_micro_batches(settings: dict[str, Any]) -> None:
    # By hand: the moment of the first step with beta 0 is the gradient itself.
    settings = merged(settings, model={"tuning": FULL, "dtype": "bfloat16"})
    moments: list[dict[str, Tensor]] = []
    for budget in (1, 10_000):
        learner, _ = learner_on(settings, micro_batch_tokens=budget)
        experience = experience_for(learner)
        learner.update(replace(experience, values=[row * 0 for row in experience.values]), step=0)
        tensors = snapshot(learner).tensors
        moments.append({name: tensor for name, tensor in tensors.items() if name.endswith("/exp_avg")})
    split, whole = moments
    assert {tensor.dtype for tensor in split.values()} == {torch.float32}
    for name, tensor in whole.items():
        assert float((split[name] - tensor).norm()) < 0.05 * float(tensor.norm()), name
