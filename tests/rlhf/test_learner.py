"""The learner: what one update does to policy and critic, by hand and by invariants."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.loading import load_backbone, prepare_policy
from policies.scalar_head import ScalarHead
from policies.value import ValueModel
from rlhf.config import PpoConfig
from rlhf.experience import Experience
from rlhf.learner import Learner
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.metric_registry import require_documented
from rollout.types import TokenIds
from tests.tiny_models import randomize
from tests.tiny_ppo import (
    ADVANTAGES,
    RETURNS,
    STEP_IS_GRADIENT,
    build_learner,
    experience_for,
    largest_difference,
    merged,
    ppo_settings,
    snapshot,
    text_stream,
    with_ptx,
)

# So small that no weight moves.
AT_REST = {"learning_rate": 1e-30}
ONE_PASS = {"epochs": 1, "minibatches": 1}
TOKENS = sum(len(row) for row in ADVANTAGES)
FULL = {"kind": "full"}
HEAD = {"critic": {"kind": "head"}}
BFLOAT16 = {"model": {"tuning": FULL, "dtype": "bfloat16"}}
VARIANTS = ["lora", "head on the trunk", "full", "full in bfloat16"]


@pytest.fixture
def settings(tmp_path: Path, tiny_llama_folder: Path) -> dict[str, Any]:
    return ppo_settings(tmp_path, tiny_llama_folder)


def config_of(settings: Mapping[str, Any], **changes: Any) -> PpoConfig:
    return PpoConfig.model_validate(merged(settings, **changes))


def learner_of(settings: Mapping[str, Any], **changes: Any) -> Learner:
    """A learner whose adapters have weights that show; a new LoRA adapter has B = 0 and so no gradient in A."""
    config = config_of(settings, **changes)
    backbone = load_backbone(config.model)
    learner = build_learner(config, backbone=backbone)
    for seed, name in enumerate(backbone.adapters.names):
        randomize(backbone.adapters, name, seed=seed)
    return learner


def twin_of(settings: Mapping[str, Any]) -> Backbone:
    """A backbone with the policy of `learner_of`."""
    config = config_of(settings)
    backbone = load_backbone(config.model)
    prepare_policy(backbone, config.model.tuning, seed=config.seed)
    randomize(backbone.adapters, "policy", seed=0)
    backbone.trainable("policy")
    return backbone


def policy_weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.publish().items()}


def step_of(learner: Learner, experience: Experience) -> dict[str, Tensor]:
    """What one update adds to the policy's weights."""
    before = policy_weights(learner)
    learner.update(experience, step=0)
    return {name: tensor - before[name] for name, tensor in policy_weights(learner).items()}


def relative_difference(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest difference over the largest entry of `expected`, which must show."""
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    assert scale > 1e-2
    return largest_difference(actual, expected) / scale


def shifted(experience: Experience, nats: float) -> Experience:
    """The same samples, had the sampler given every token a log-prob that is higher by `nats`."""
    return replace(experience, behavior_logprobs=[row + np.float32(nats) for row in experience.behavior_logprobs])


def log_likelihoods(backbone: Backbone, prompt: TokenIds, response: TokenIds) -> Tensor:
    """(R,) by the model's own logits, one sequence at a time."""
    ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.long)
    with backbone.adapters.use("policy"):
        logits = backbone.model(input_ids=ids[None]).logits[0]
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    positions = torch.arange(len(prompt), len(ids))
    return logprobs[positions - 1, ids[positions]]


def gradient_of(loss: Tensor, backbone: Backbone) -> dict[str, Tensor]:
    names, parameters = zip(*backbone.adapters.trainable("policy"), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


# --- losses and gradients by hand -------------------------------------------------------------------------------------


def test_the_losses_of_the_first_pass_are_those_worked_by_hand(settings: dict[str, Any]) -> None:
    learner = learner_of(settings, algorithm=ONE_PASS)
    experience = experience_for(learner)
    metrics = learner.update(experience, step=0)
    # All ratios are 1: the loss is the mean of -A over the 7 tokens.
    assert metrics["loss/policy"] == pytest.approx(-sum(map(sum, ADVANTAGES)) / TOKENS, abs=1e-6)
    errors = np.concatenate(experience.values) - np.concatenate([np.array(row) for row in RETURNS])
    assert metrics["loss/value"] == pytest.approx(0.5 * np.mean(errors**2), rel=1e-5)
    assert metrics["critic/squared_error"] == pytest.approx(np.mean(errors**2), rel=1e-5)
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-6)


def test_the_policy_gradient_is_the_one_of_a_slow_reference(settings: dict[str, Any]) -> None:
    settings = merged(settings, optimizer=STEP_IS_GRADIENT, algorithm=ONE_PASS)
    learner = learner_of(settings)
    experience = experience_for(learner)
    twin = twin_of(settings)

    objective = torch.zeros(())
    for prompt, response, advantages in zip(experience.prompts, experience.responses, ADVANTAGES, strict=True):
        # At ratio 1 the gradient of the clipped surrogate is that of A * log pi.
        objective = objective + (log_likelihoods(twin, prompt, response) * torch.tensor(advantages)).sum()
    expected = gradient_of(objective / TOKENS, twin)

    assert relative_difference(step_of(learner, experience), expected) < 1e-4


def test_the_critic_descends_its_coefficient_times_the_mean_squared_error(settings: dict[str, Any]) -> None:
    critic = {"optimizer": STEP_IS_GRADIENT}
    learner = learner_of(settings, critic=critic, algorithm={**ONE_PASS, "value_coefficient": 0.3})
    experience = experience_for(learner)
    before = snapshot(learner).tensors_of("critic")
    learner.update(experience, step=0)
    # The derivative of 0.5 * mean (v - R)^2 by the head's bias is mean (v - R).
    errors = np.concatenate(experience.values) - np.concatenate(experience.returns)
    step = snapshot(learner).tensors_of("critic")["head.bias"] - before["head.bias"]
    assert float(step) == pytest.approx(-0.3 * errors.mean(), rel=1e-4)


def test_ptx_adds_its_coefficient_times_the_gradient_of_the_text(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = merged(settings, optimizer=STEP_IS_GRADIENT, algorithm=ONE_PASS)
    mixed = with_ptx(tmp_path, plain)
    learner = learner_of(mixed)
    twin = twin_of(mixed)
    texts = text_stream(config_of(mixed), twin.tokenizer).next(2)

    nll = torch.cat([-log_likelihoods(twin, text[:1], text[1:]) for text in texts]).mean()
    expected = gradient_of(-0.5 * nll, twin)
    without = learner_of(plain)
    difference = {
        name: tensor - other
        for (name, tensor), other in zip(
            step_of(learner, experience_for(learner)).items(),
            step_of(without, experience_for(without)).values(),
            strict=True,
        )
    }
    assert relative_difference(difference, expected) < 1e-4


def test_ptx_reports_its_loss_and_the_ratio_of_the_gradients(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = merged(settings, optimizer=STEP_IS_GRADIENT, algorithm=ONE_PASS)
    without = learner_of(plain)
    base = step_of(without, experience_for(without))
    mixed = learner_of(with_ptx(tmp_path, plain))
    experience = experience_for(mixed)
    before = policy_weights(mixed)
    metrics = mixed.update(experience, step=0)
    norm = math.sqrt(sum(float(tensor.square().sum()) for tensor in base.values()))
    text_norm = math.sqrt(
        sum(
            float((tensor - before[name] - base[name]).square().sum()) for name, tensor in policy_weights(mixed).items()
        )
    )
    assert metrics["policy/ptx_gradient_ratio"] == pytest.approx(text_norm / norm, rel=1e-3)
    # A random model of 300 tokens is worse than uniform, log 300 = 5.7 nats.
    assert 5.0 < metrics["loss/ptx"] < 20.0


@pytest.mark.parametrize("variant", [{}, BFLOAT16], ids=["lora", "full in bfloat16"])
def test_a_balanced_mix_has_the_wanted_ratio_whatever_the_size_of_the_text_gradient(
    settings: dict[str, Any], tmp_path: Path, variant: dict[str, Any]
) -> None:
    plain = merged(settings, optimizer=STEP_IS_GRADIENT, algorithm=ONE_PASS, **variant)
    fixed = with_ptx(tmp_path, plain)
    balance = {"ptx": {"coefficient": None, "gradient_ratio": 0.25}}
    metrics: dict[str, float] = {}
    steps: list[dict[str, Tensor]] = []
    for settings_of_one in (plain, fixed, merged(fixed, algorithm=balance)):
        learner = learner_of(settings_of_one)
        experience = experience_for(learner)
        before = policy_weights(learner)
        metrics = learner.update(experience, step=0)
        steps.append({name: tensor - before[name] for name, tensor in policy_weights(learner).items()})
    assert metrics["policy/ptx_gradient_ratio"] == pytest.approx(0.25, rel=1e-4)
    if variant:
        return  # The steps of bfloat16 weights are too coarse to be compared.
    # The text's share of both steps has one direction, and the balanced one is a quarter as long as the PPO step.
    without, mixed, balanced = steps
    text = {name: balanced[name] - without[name] for name in without}
    expected = {name: metrics["policy/ptx_coefficient"] / 0.5 * (mixed[name] - without[name]) for name in without}
    assert relative_difference(text, expected) < 1e-3
    norms = [math.sqrt(sum(float(t.square().sum()) for t in step.values())) for step in (text, without)]
    assert norms[0] == pytest.approx(0.25 * norms[1], rel=1e-3)


@pytest.mark.parametrize("weights", [{"gradient_ratio": 0.1}, {"coefficient": None}], ids=["both", "neither"])
def test_a_mix_has_exactly_one_weight(settings: dict[str, Any], tmp_path: Path, weights: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"coefficient=.* and gradient_ratio=.* give one of them, and null"):
        config_of(with_ptx(tmp_path, settings), algorithm={"ptx": weights})


def test_a_positive_advantage_makes_its_token_likelier_and_a_negative_one_less_likely(settings: dict[str, Any]) -> None:
    for advantage in (2.0, -2.0):
        learner = learner_of(settings, algorithm=ONE_PASS, optimizer={"learning_rate": 1e-4})
        experience = experience_for(learner)
        chosen = [np.zeros_like(row) for row in experience.advantages]
        chosen[1][2] = advantage
        learner.update(replace(experience, advantages=chosen), step=0)
        after = learner.logprobs(experience.prompts, experience.responses)
        assert (after[1][2] - experience.behavior_logprobs[1][2]) * advantage > 1e-4


def test_without_any_advantage_only_the_critic_moves(settings: dict[str, Any]) -> None:
    learner = learner_of(settings)
    experience = experience_for(learner)
    critic = snapshot(learner).tensors_of("critic")
    nothing = replace(experience, advantages=[np.zeros_like(row) for row in experience.advantages])
    assert max(float(change.abs().max()) for change in step_of(learner, nothing).values()) == 0.0
    assert largest_difference(snapshot(learner).tensors_of("critic"), critic) > 1e-3


# --- invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", [{}, FULL], ids=["lora", "full"])
def test_before_the_first_step_the_ratio_is_one(settings: dict[str, Any], tuning: dict[str, Any]) -> None:
    learner = learner_of(settings, model={"tuning": tuning}) if tuning else learner_of(settings)
    metrics = learner.update(experience_for(learner), step=0)
    assert metrics["policy/first_step_ratio_error"] < 1e-5
    # And it says something: the same step moves the policy well away from 1.
    assert metrics["policy/ratio_max"] > 1.01


def test_a_sampler_with_other_weights_shows_in_the_first_ratio(settings: dict[str, Any]) -> None:
    learner = learner_of(settings)
    metrics = learner.update(shifted(experience_for(learner), -math.log(1.25)), step=0)
    assert metrics["policy/first_step_ratio_error"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("variant", [{}, HEAD, {"model": {"tuning": FULL}}], ids=VARIANTS[:3])
@pytest.mark.parametrize("mix", ["plain", "ptx"])
def test_an_update_does_not_depend_on_the_micro_batches(
    settings: dict[str, Any], tmp_path: Path, variant: dict[str, Any], mix: str
) -> None:
    settings = with_ptx(tmp_path, settings) if mix == "ptx" else settings
    settings = merged(settings, **variant)
    # Plain gradient descent with a rate of 2e-4: Adam turns rounding of a gradient near 0 into a step of full size.
    descent = STEP_IS_GRADIENT | {"learning_rate": 2e2}
    settings = merged(settings, optimizer=descent, critic={"optimizer": descent})
    budgets = [1, 10, 10_000]
    learners = [learner_of(settings, micro_batch_tokens=budget) for budget in budgets]
    # One experience for all: log-probs that differ in their last bit are another experience.
    experience = experience_for(learners[0])
    start = policy_weights(learners[0])
    metrics = [learner.update(experience, step=0) for learner in learners]
    assert largest_difference(policy_weights(learners[0]), start) > 5e-4
    for learner, row in zip(learners[1:], metrics[1:], strict=True):
        assert largest_difference(policy_weights(learner), policy_weights(learners[0])) < 1e-6
        own, first = snapshot(learner), snapshot(learners[0])
        assert largest_difference(own.tensors_of("critic"), first.tensors_of("critic")) < 1e-6
        of_the_loss = {key for key in row if not key.startswith("perf/")}
        assert {key: row[key] for key in of_the_loss} == pytest.approx(
            {key: metrics[0][key] for key in of_the_loss}, rel=1e-4, abs=1e-5
        )


@pytest.mark.parametrize(("attention", "waste"), [("sdpa", 0.0), ("eager", 1 - 13 / 15)])
def test_padding_is_computed_only_where_rows_cannot_be_packed(
    settings: dict[str, Any], attention: str, waste: float
) -> None:
    # Sequences of 5, 5 and 3 tokens in one micro-batch.
    learner = learner_of(settings, model={"attention": attention}, algorithm=ONE_PASS, micro_batch_tokens=15)
    metrics = learner.update(experience_for(learner), step=0)
    assert metrics["perf/padding_waste"] == pytest.approx(waste)


def test_every_sample_is_in_exactly_one_minibatch_of_a_pass(settings: dict[str, Any]) -> None:
    learner = learner_of(settings, algorithm={"epochs": 3, "minibatches": 3}, optimizer=AT_REST)
    metrics = learner.update(experience_for(learner), step=0)
    # Three minibatches of one sample each: the mean over minibatches is the mean over samples.
    assert metrics["loss/policy"] == pytest.approx(-np.mean([np.mean(row) for row in ADVANTAGES]), abs=1e-5)


def test_fewer_samples_than_minibatches_are_a_minibatch_each(settings: dict[str, Any]) -> None:
    learner = learner_of(settings, algorithm={"epochs": 1, "minibatches": 3})
    learner.update(experience_for(learner, rows=(0, 2)), step=0)
    assert snapshot(learner).values["learner"]["policy_updates"] == 2


def test_the_order_of_samples_is_a_function_of_seed_and_step(settings: dict[str, Any]) -> None:
    settings = merged(settings, algorithm={"epochs": 2, "minibatches": 3})
    learners = [learner_of(settings) for _ in range(3)]
    experience = experience_for(learners[0])
    for learner, step in zip(learners, (0, 0, 1), strict=True):
        learner.update(experience, step=step)
    same, other = (largest_difference(policy_weights(learners[0]), policy_weights(x)) for x in learners[1:])
    assert same == 0.0
    assert other > 1e-5


def test_the_learning_rate_falls_over_all_updates_of_the_run(settings: dict[str, Any]) -> None:
    # 3 steps of 2 x 2 updates: factors 1 - t / 12, of which the second step has t = 4 .. 7.
    learner = learner_of(settings, critic={"optimizer": {"learning_rate": 4e-3}})
    experience = experience_for(learner)
    learner.update(experience, step=0)
    metrics = learner.update(experience, step=1)
    assert metrics["policy/lr"] == pytest.approx(1e-2 * (1 - 5.5 / 12))
    assert metrics["critic/lr"] == pytest.approx(4e-3 * (1 - 5.5 / 12))


def test_no_gradient_outlives_an_update_and_none_reaches_the_base(settings: dict[str, Any]) -> None:
    config = config_of(settings)
    backbone = load_backbone(config.model)
    learner = build_learner(config, backbone=backbone)
    learner.update(experience_for(learner), step=0)
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    trained = {id(p) for name in ("policy", "critic") for _, p in backbone.adapters.parameters(name)}
    assert all(p.requires_grad == (id(p) in trained) for p in backbone.model.parameters())


# --- without a critic -------------------------------------------------------------------------------------------------

CRITIC_FREE = {
    "algorithm": {"advantages": {"kind": "rloo"}},
    "rollout": {"responses_per_prompt": 2},
    "critic": {},
}


@pytest.mark.parametrize("tuning", [{}, FULL], ids=["lora", "full"])
def test_without_a_critic_the_policy_takes_the_same_steps_and_nothing_else_exists(
    settings: dict[str, Any], tuning: dict[str, Any]
) -> None:
    settings = merged(settings, model={"tuning": tuning} if tuning else {})
    alone = learner_of({**settings, "critic": {}}, **CRITIC_FREE)
    beside = learner_of(settings)
    experience = experience_for(beside)
    without = replace(experience, values=(), returns=())
    metrics, expected = alone.update(without, step=0), beside.update(experience, step=0)
    assert largest_difference(policy_weights(alone), policy_weights(beside)) == 0.0
    assert {key for key in expected if key not in metrics} == {key for key in expected if "critic" in key} | {
        "loss/value"
    }
    assert {key: metrics[key] for key in metrics} == {key: expected[key] for key in metrics}
    assert not [name for name in snapshot(alone).tensors if name.startswith("critic")]
    assert set(snapshot(alone).values["learner"]) == {"policy_updates", "ptx"}


def test_a_critic_and_advantages_that_need_none_are_a_bug(settings: dict[str, Any]) -> None:
    config = config_of({**settings, "critic": {}}, **CRITIC_FREE)
    backbone = twin_of(settings)
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    critic = ValueModel(backbone, adapter="policy", head=ScalarHead(backbone.hidden_size))
    with pytest.raises(AssertionError, match=r"a critic belongs to algorithm\.advantages\.kind=gae"):
        Learner(policy, critic, config=config)


# --- the pretraining mix ----------------------------------------------------------------------------------------------


def test_the_text_stream_advances_by_one_minibatch_a_step_of_the_optimizer(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    mixed = with_ptx(tmp_path, settings)
    learner = learner_of(mixed)
    learner.update(experience_for(learner), step=0)
    expected = text_stream(config_of(mixed), twin_of(mixed).tokenizer)
    expected.next(2 * 2 * 2)
    assert snapshot(learner).values["learner"]["ptx"] == expected.state_dict()


def test_plain_ppo_has_no_text_and_no_metric_of_it(settings: dict[str, Any]) -> None:
    learner = learner_of(settings)
    metrics = learner.update(experience_for(learner), step=0)
    assert not {"loss/ptx", "policy/ptx_gradient_ratio"} & metrics.keys()
    assert snapshot(learner).values["learner"]["ptx"] is None


def test_a_stream_without_the_option_is_a_bug(settings: dict[str, Any], tmp_path: Path) -> None:
    mixed = config_of(with_ptx(tmp_path, settings))
    backbone = twin_of(settings)
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    critic = ValueModel(backbone, adapter="policy", head=ScalarHead(backbone.hidden_size))
    with pytest.raises(AssertionError, match="pretraining stream"):
        Learner(policy, critic, config=mixed, ptx=None)


# --- options ----------------------------------------------------------------------------------------------------------


def test_the_importance_cap_changes_nothing_where_sampler_and_learner_agree(settings: dict[str, Any]) -> None:
    plain, capped = learner_of(settings), learner_of(settings, algorithm={"importance_cap": 2.0})
    experience = experience_for(plain)
    plain.update(experience, step=0)
    metrics = capped.update(experience, step=0)
    assert metrics["policy/importance_weight_mean"] == pytest.approx(1.0, abs=1e-6)
    assert largest_difference(policy_weights(plain), policy_weights(capped)) < 1e-7


def test_importance_weights_are_capped_and_the_clip_is_centred_on_the_learner(settings: dict[str, Any]) -> None:
    settings = merged(settings, optimizer=STEP_IS_GRADIENT, algorithm=ONE_PASS)
    plain, capped = learner_of(settings), learner_of(settings, algorithm={"importance_cap": 1.5})
    experience = experience_for(plain)
    expected = step_of(plain, experience)
    before = policy_weights(capped)
    # The learner gives every token twice the probability the sampler gave it: weight min(2, 1.5), ratio 1.
    metrics = capped.update(shifted(experience, -math.log(2.0)), step=0)
    step = {name: (tensor - before[name]) / 1.5 for name, tensor in policy_weights(capped).items()}
    assert metrics["policy/importance_weight_mean"] == pytest.approx(1.5, rel=1e-5)
    assert metrics["policy/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/clipfrac"] == 0.0
    assert relative_difference(step, expected) < 1e-4


def test_read_only_arrays_are_enough(settings: dict[str, Any]) -> None:
    # Arrays from Ray's object store cannot be written to.
    learner = learner_of(settings, algorithm={"importance_cap": 2.0})
    experience = experience_for(learner)
    for column in (experience.prompts, experience.responses, experience.behavior_logprobs, experience.values):
        for array in column:
            array.flags.writeable = False
    learner.update(experience, step=0)


def test_the_dual_clip_bounds_tokens_with_a_negative_advantage_and_a_large_ratio(settings: dict[str, Any]) -> None:
    settings = merged(settings, optimizer=STEP_IS_GRADIENT, algorithm=ONE_PASS)
    learner = learner_of(settings, algorithm={"dual_clip": 3.0})
    # Ratio 4 everywhere: positive advantages are clipped at 1.2, negative ones bounded at 3, so no gradient is left.
    experience = shifted(experience_for(learner), -math.log(4.0))
    before = policy_weights(learner)
    metrics = learner.update(experience, step=0)
    negative = [a for row in ADVANTAGES for a in row if a < 0]
    positive = [a for row in ADVANTAGES for a in row if a > 0]
    assert metrics["policy/dual_clipfrac"] == pytest.approx(len(negative) / TOKENS)
    assert metrics["policy/clipfrac"] == pytest.approx(len(positive) / TOKENS)
    assert metrics["loss/policy"] == pytest.approx(-(1.2 * sum(positive) + 3 * sum(negative)) / TOKENS, rel=1e-4)
    assert largest_difference(policy_weights(learner), before) == 0.0


def test_an_update_that_moves_too_far_leaves_out_the_rest_of_the_step(settings: dict[str, Any]) -> None:
    # The rate is large: the second minibatch finds the policy far away, and is the last of six.
    settings = merged(settings, algorithm={"epochs": 3, "minibatches": 2}, optimizer={"learning_rate": 0.3})
    bounded = learner_of(settings, algorithm={"max_approx_kl": 1e-3})
    experience = experience_for(bounded)
    metrics = bounded.update(experience, step=0)
    assert metrics["policy/skipped_minibatches"] == 4.0
    assert metrics["policy/approxkl"] > 1e-3 / 2, "the mean of 0 and of what was too far"

    # Those two are the first two of a learner without the bound; the schedules stand where they would stand after six.
    free = learner_of(settings)
    assert "policy/skipped_minibatches" not in free.update(experience, step=0)
    assert metrics["policy/first_step_ratio_error"] < 1e-5
    values = snapshot(bounded).values["learner"]
    assert (values["policy_updates"], values["critic_updates"]) == (6, 6)


def test_an_update_within_its_bound_takes_every_minibatch(settings: dict[str, Any]) -> None:
    bounded, free = learner_of(settings, algorithm={"max_approx_kl": 1e3}), learner_of(settings)
    experience = experience_for(bounded)
    metrics = bounded.update(experience, step=0)
    assert metrics.pop("policy/skipped_minibatches") == 0.0
    assert metrics == free.update(experience, step=0)
    assert largest_difference(snapshot(bounded).tensors, snapshot(free).tensors) == 0.0


def test_every_metric_of_every_option_is_documented(settings: dict[str, Any], tmp_path: Path) -> None:
    algorithm = {"importance_cap": 2.0, "dual_clip": 3.0, "max_approx_kl": 0.1}
    learner = learner_of(with_ptx(tmp_path, merged(settings, algorithm=algorithm)))
    metrics = learner.update(experience_for(learner), step=0)
    require_documented(metrics)
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())


# --- a loss that is no number -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("column", "who"), [("advantages", "policy"), ("returns", "critic")])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(
    settings: dict[str, Any], column: str, who: str, bad: float
) -> None:
    learner = learner_of(settings, algorithm=ONE_PASS)
    experience = experience_for(learner)
    poisoned = [row.copy() for row in getattr(experience, column)]
    poisoned[1][2] = bad
    before = snapshot(learner)
    with pytest.raises(NonFiniteLossError, match=f"{who} loss is (nan|-?inf) at step 0") as error:
        learner.update(replace(experience, **{column: poisoned}), step=0)
    assert error.value.tensor is not None
    assert error.value.tensor.startswith("gradient of ")
    assert largest_difference(snapshot(learner).tensors, before.tensors) == 0.0

    # Nor is a gradient left over: the next update is that of a learner which never saw the bad samples.
    fresh = learner_of(settings, algorithm=ONE_PASS)
    assert largest_difference(step_of(learner, experience), step_of(fresh, experience)) == 0.0


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", [{}, HEAD, {"model": {"tuning": FULL}}, BFLOAT16], ids=VARIANTS)
def test_a_loaded_state_continues_bitwise(settings: dict[str, Any], tmp_path: Path, variant: dict[str, Any]) -> None:
    settings = merged(with_ptx(tmp_path, settings), **variant)
    straight, resumed = learner_of(settings), build_learner(config_of(settings))
    straight.update(experience_for(straight), step=0)
    saved = snapshot(straight, step=1)
    following = experience_for(straight)
    expected = straight.update(following, step=1)

    # Twice, because what was loaded must not be written into by the update.
    for _ in range(2):
        resumed.load_state(saved)
        metrics = resumed.update(following, step=1)
        assert metrics == expected
        own, other = snapshot(resumed), snapshot(straight)
        assert own.values == other.values
        assert largest_difference(own.tensors, other.tensors) == 0.0
