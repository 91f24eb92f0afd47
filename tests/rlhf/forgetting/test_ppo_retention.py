"""`algorithm.retention` of PPO: the pull in one update by hand, what it leaves alone, exact resuming, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from policies.causal import CausalPolicy
from policies.loading import load_backbone, prepare_policy
from rlhf.config import PpoConfig
from rlhf.learner import Learner
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.metrics import JsonlSink
from tests.tiny_models import randomize
from tests.tiny_ppo import (
    OLD_EXAMPLES,
    STEP_IS_GRADIENT,
    build_learner,
    comparable,
    experience_for,
    largest_difference,
    merged,
    metrics_of,
    ppo_config,
    ppo_settings,
    run_ppo,
    snapshot,
    with_ptx,
)

L2_SP = {"kind": "l2_sp", "coefficient": 0.3}
EWC = {"kind": "ewc", "coefficient": 0.7, "data": "old.jsonl"}
FULL = {"model": {"tuning": {"kind": "full"}}}
BFLOAT16 = {"model": {"tuning": {"kind": "full"}, "dtype": "bfloat16"}}


@pytest.fixture
def settings(tmp_path: Path, tiny_llama_folder: Path) -> dict[str, Any]:
    return ppo_settings(tmp_path, tiny_llama_folder)


def learner_of(settings: dict[str, Any], retention: dict[str, Any] | None = None) -> Learner:
    """A learner away from where the pull goes: an adapter gets its weights after the learner is built."""
    changes = {} if retention is None else {"algorithm": {"retention": retention}}
    config = PpoConfig.model_validate(merged(settings, **changes))
    backbone = load_backbone(config.model)
    learner = build_learner(config, backbone=backbone)
    for seed, name in enumerate(backbone.adapters.names):
        randomize(backbone.adapters, name, seed=seed)
    return learner


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.publish().items()}


def step_of(learner: Learner) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What one update adds to the policy's weights, and its metrics."""
    experience, before = experience_for(learner), weights(learner)
    metrics = learner.update(experience, step=0)
    return {name: tensor - before[name] for name, tensor in weights(learner).items()}, metrics


def start_of(settings: dict[str, Any]) -> CausalPolicy:
    """The policy as the run starts, at a temperature that is not that of sampling."""
    config = PpoConfig.model_validate(settings)
    backbone = load_backbone(config.model)
    adapter = prepare_policy(backbone, config.model.tuning, seed=config.seed)
    return CausalPolicy(backbone, adapter=adapter, temperature=1.0)


def fisher_of(policy: CausalPolicy) -> dict[str, Tensor]:
    """Mean of the squared gradients of `OLD_EXAMPLES`, by the model's own logits."""
    names, parameters = zip(*policy.trainable(), strict=True)
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for example in OLD_EXAMPLES:
        ids = torch.from_numpy(example.token_ids).long()
        with policy.backbone.adapters.use(policy.adapter):
            logprobs = policy.backbone.model(input_ids=ids[None]).logits[0].log_softmax(-1)
        learned = torch.from_numpy(example.loss_mask).nonzero()[:, 0]
        total = logprobs[learned - 1, ids[learned]].sum()
        for square, gradient in zip(squares, torch.autograd.grad(total, parameters), strict=True):
            square += gradient.square() / len(OLD_EXAMPLES)
    return dict(zip(names, squares, strict=True))


# --- one update -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retention", [L2_SP, EWC], ids=["l2_sp", "ewc"])
def test_an_update_is_pulled_to_the_start_once_however_many_passes_it_has(
    settings: dict[str, Any], tmp_path: Path, retention: dict[str, Any]
) -> None:
    one_update = {"epochs": 1, "minibatches": 1}
    settings = merged(
        with_ptx(tmp_path, settings),
        optimizer=STEP_IS_GRADIENT,
        algorithm=one_update,
        micro_batch_tokens=1,
        rollout={"sampling": {"temperature": 0.5}},
    )
    free, held = learner_of(settings), learner_of(settings, retention)
    now, policy = weights(held), start_of(settings)
    start = policy.weights()
    importance = fisher_of(policy) if retention is EWC else {name: torch.ones_like(start[name]) for name in start}
    distance = {name: now[name] - start[name] for name in now}
    expected = {name: -retention["coefficient"] * importance[name] * distance[name] for name in now}
    (without, _), (pulled, metrics) = step_of(free), step_of(held)
    found = {name: pulled[name] - without[name] for name in now}

    largest = max(float(tensor.abs().max()) for tensor in expected.values())
    assert largest > 1e-2
    assert largest_difference(found, expected) < 1e-3 * largest
    penalty = -0.5 * sum(float((expected[name] * distance[name]).sum()) for name in now)
    assert metrics["loss/retention"] == pytest.approx(penalty, rel=1e-4)
    require_documented(metrics)


@pytest.mark.parametrize("variant", [{}, FULL], ids=["lora", "full"])
def test_a_pull_too_weak_to_count_changes_no_bit(settings: dict[str, Any], variant: dict[str, Any]) -> None:
    settings = merged(settings, **variant)
    free, held = learner_of(settings), learner_of(settings, {"kind": "l2_sp", "coefficient": 1e-30})
    for step in range(2):
        experience = experience_for(free)
        expected = free.update(experience, step=step)
        metrics = held.update(experience, step=step)
        assert metrics.pop("loss/retention") < 1e-25
        assert metrics == expected
    assert largest_difference(snapshot(held).tensors, snapshot(free).tensors) == 0.0


def test_a_strong_pull_keeps_the_policy_and_leaves_the_critic_alone(settings: dict[str, Any]) -> None:
    settings = merged(settings, **FULL, steps=5)
    start = weights(learner_of(settings))
    distances: list[float] = []
    critics: list[dict[str, Tensor]] = []
    for retention in (None, {"kind": "l2_sp", "coefficient": 100.0}):
        learner = learner_of(settings, retention)
        experience = experience_for(learner)
        for step in range(5):
            learner.update(experience, step=step)
        distances.append(sum(float((new - start[name]).square().sum()) for name, new in weights(learner).items()))
        critics.append(snapshot(learner).tensors_of("critic"))
    assert distances[1] < 0.3 * distances[0]
    assert largest_difference(*critics) == 0.0


@pytest.mark.parametrize(
    ("retention", "variant"), [(L2_SP, BFLOAT16), (EWC, {})], ids=["l2_sp, full in bfloat16", "ewc, lora"]
)
def test_a_loaded_state_continues_bitwise(
    settings: dict[str, Any], retention: dict[str, Any], variant: dict[str, Any]
) -> None:
    settings = merged(settings, **variant, algorithm={"retention": retention})
    config = PpoConfig.model_validate(settings)
    straight, resumed = build_learner(config), build_learner(config)
    straight.update(experience_for(straight), step=0)
    saved, following = snapshot(straight, step=1), experience_for(straight)
    expected = straight.update(following, step=1)
    resumed.load_state(saved)
    assert resumed.update(following, step=1) == expected
    assert expected["loss/retention"] > 0
    assert largest_difference(snapshot(resumed).tensors, snapshot(straight).tensors) == 0.0


# --- a run ------------------------------------------------------------------------------------------------------------


def test_an_interrupted_run_with_ewc_resumes_to_the_numbers_of_a_straight_one(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old.jsonl"
    rows = [{"text": "the small cat sat on the warm mat"}, {"prompt": "who ran?", "completion": " a dog"}]
    old.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    retention = {"kind": "ewc", "data": str(old), "coefficient": 5.0}
    straight, broken = (
        ppo_config(tmp_path, tiny_llama_folder, algorithm={"retention": retention}, run_dir=str(tmp_path / name))
        for name in ("straight", "broken")
    )
    expected = metrics_of(run_ppo(straight))
    log = JsonlSink.log

    def log_or_interrupt(self: JsonlSink, step: int, metrics: Any) -> None:
        if step == 2:
            monkeypatch.undo()
            raise KeyboardInterrupt
        log(self, step, metrics)

    monkeypatch.setattr(JsonlSink, "log", log_or_interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_ppo(broken)
    found = metrics_of(run_ppo(broken, resume=True))
    assert comparable(found) == comparable(expected)
    assert all(row["loss/retention"] > 0 for row in expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_kl_and_replay_have_names_of_their_own_in_ppo(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"does not match any of the expected tags: 'none', 'l2_sp', 'ewc'"):
        PpoConfig.model_validate(merged(settings, algorithm={"retention": {"kind": "replay"}}))


def test_old_data_must_be_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"algorithm.retention.data is missing: algorithm.retention.kind=ewc needs"):
        PpoConfig.model_validate(merged(settings, algorithm={"retention": {"kind": "ewc"}}))


def test_fisher_information_of_cut_layers_is_refused(settings: dict[str, Any]) -> None:
    placement = {"kind": "split", "learner": {"workers": 2, "sharding": "full"}}
    changed = merged(settings, **FULL, placement=placement)
    PpoConfig.model_validate(merged(changed, algorithm={"retention": L2_SP}))
    with pytest.raises(ValueError, match=r"sharding=full: algorithm.retention.kind=ewc takes gradients of whole"):
        PpoConfig.model_validate(merged(changed, algorithm={"retention": EWC}))


def test_a_bad_old_row_is_named_before_there_is_a_run_folder(tmp_path: Path, tiny_llama_folder: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"prompt": "who?", "completion": ""}\n', encoding="utf-8")
    retention = EWC | {"data": str(tmp_path / "old.jsonl")}
    config = ppo_config(tmp_path, tiny_llama_folder, algorithm={"retention": retention})
    with pytest.raises(ValueError, match=r"algorithm.retention.data=.*old.jsonl, row 0: completion"):
        run_ppo(config)
    assert not Path(config.run_dir).exists()
