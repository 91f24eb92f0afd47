"""Where the critic starts: at the scores of a reward model on its base, or at zero."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from policies.causal import CausalPolicy
from policies.loading import load_backbone, prepare_policy
from policies.sequences import SequenceBatch
from policies.value import ValueModel
from reward.model import RewardModel
from rlhf.config import PpoConfig
from rlhf.critic import build_critic
from rlhf.learner import Learner
from tests.tiny_models import RAGGED, build_model, ragged_batch
from tests.tiny_ppo import REWARD_SCALE, experience_for, ppo_config, write_reward_adapter

FULL = {"kind": "full"}
LORA = {"kind": "lora", "rank": 2}


@pytest.fixture(scope="module")
def reward_folder(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward_adapter(tmp_path_factory.mktemp("reward") / "model", tiny_llama_folder)


def source(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"kind": "model", "path": str(folder), "device": "cpu", **fields}


def critic_of(config: PpoConfig) -> ValueModel:
    return policy_and_critic(config)[1]


def policy_and_critic(config: PpoConfig) -> tuple[CausalPolicy, ValueModel]:
    """Both as the learner's role builds them."""
    backbone = load_backbone(config.model)
    adapter = prepare_policy(backbone, config.model.tuning, seed=0)
    policy = CausalPolicy(backbone, adapter=adapter, temperature=1.0)
    return policy, build_critic(config, backbone, policy_adapter=adapter)


def prefix_scores(folder: Path) -> list[list[float]]:
    """Raw score of prompt + response[:t] for each token t of `RAGGED`, by the model on a base of its own."""
    model = RewardModel.from_folder(str(folder), device="cpu")

    def score(ids: list[int]) -> float:
        row = torch.tensor([ids])
        with torch.no_grad():
            return float(model.raw_scores(row, torch.ones_like(row)))

    return [[score(prompt + response[:t]) for t in range(len(response))] for prompt, response in RAGGED]


def rows_of(values: torch.Tensor, batch: SequenceBatch) -> list[np.ndarray]:
    return [row[mask].detach().numpy() for row, mask in zip(values, batch.response_mask, strict=True)]


@pytest.mark.parametrize(
    ("fields", "mean", "std"),
    [
        ({}, REWARD_SCALE.mean, REWARD_SCALE.std),
        ({"normalization": "none"}, 0.0, 1.0),
        ({"weight": -0.5}, REWARD_SCALE.mean, -2 * REWARD_SCALE.std),
        ({"normalization": "logits"}, REWARD_SCALE.mean, 0.75),
    ],
    ids=["stored scale", "raw scores", "negative weight", "logits"],
)
def test_a_first_value_is_what_the_reward_pays_for_everything_before_its_token(
    tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path, fields: dict[str, Any], mean: float, std: float
) -> None:
    if fields.get("normalization") == "logits":
        reward_folder = Path(shutil.copytree(reward_folder, tmp_path / "calibrated"))
        replace(REWARD_SCALE, temperature=std).save(reward_folder)
    critic = critic_of(ppo_config(tmp_path, tiny_llama_folder, reward=[source(reward_folder, **fields)]))
    batch = ragged_batch()
    scores = prefix_scores(reward_folder)
    # The first value has seen the prompt alone, the last one all but the last token.
    for values, expected in zip(rows_of(critic.values(batch), batch), scores, strict=True):
        np.testing.assert_allclose(values, (np.array(expected) - mean) / std, atol=1e-4)
    assert np.ptp(np.concatenate(scores)) > 0.1


def test_the_first_reward_model_with_weight_is_the_start(
    tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path
) -> None:
    other = write_reward_adapter(tmp_path / "other", tiny_llama_folder, seed=11)
    sources = [{"kind": "length"}, source(other, name="watched", weight=0.0), source(reward_folder, name="paid")]
    critic = critic_of(ppo_config(tmp_path, tiny_llama_folder, reward=sources))
    batch = ragged_batch()
    expected = (np.array(prefix_scores(reward_folder)[1]) - REWARD_SCALE.mean) / REWARD_SCALE.std
    np.testing.assert_allclose(rows_of(critic.values(batch), batch)[1], expected, atol=1e-4)


def test_the_first_member_of_an_ensemble_that_shares_the_base_is_the_start(
    tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path
) -> None:
    other = write_reward_adapter(tmp_path / "other", tiny_llama_folder, seed=11)
    members = [{"path": str(folder), "device": "cpu"} for folder in (reward_folder, other)]
    critic = critic_of(ppo_config(tmp_path, tiny_llama_folder, reward=[{"kind": "ensemble", "members": members}]))
    batch = ragged_batch()
    expected = (np.array(prefix_scores(reward_folder)[1]) - REWARD_SCALE.mean) / REWARD_SCALE.std
    np.testing.assert_allclose(rows_of(critic.values(batch), batch)[1], expected, atol=1e-4)


def test_a_critic_starts_at_zero_where_no_reward_model_shares_its_base(
    tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path, tiny_tokenizer: PreTrainedTokenizerBase
) -> None:
    elsewhere = tmp_path / "another-base"
    build_model("llama", 300).save_pretrained(elsewhere)
    tiny_tokenizer.save_pretrained(elsewhere)
    foreign = write_reward_adapter(tmp_path / "foreign", elsewhere)
    without = {
        "a rule": {"reward": [{"kind": "length"}]},
        "a model on another base": {"reward": [source(foreign)]},
        "a model that only watches": {"reward": [source(reward_folder, weight=0.0), {"kind": "length"}]},
        "zero_head": {"reward": [source(reward_folder)], "critic": {"start": "zero_head"}},
    }
    for changes in without.values():
        critic = critic_of(ppo_config(tmp_path, tiny_llama_folder, **changes))
        assert critic.adapter == "critic"
        assert torch.count_nonzero(critic.values(ragged_batch())) == 0


def test_a_start_from_a_reward_model_on_another_base_is_refused_with_the_remedy(
    tmp_path: Path, tiny_llama_folder: Path
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, critic={"start": "reward_model"}, reward=[{"kind": "length"}])
    reason = "no reward model of this run is an adapter on model.path.*critic.start=auto"
    with pytest.raises(ValueError, match=rf"^critic\.start=reward_model: {reason}$"):
        critic_of(config)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": {"tuning": FULL}}, "kind model cannot take over an adapter; set critic.start=zero_head"),
        ({"critic": {"kind": "head"}}, "kind head cannot take over an adapter; set critic.start=zero_head"),
        ({"model": {"tuning": FULL}, "critic": {"kind": "adapter"}}, "critic.kind=adapter: full tuning would change"),
    ],
)
def test_a_kind_that_is_impossible_is_refused_by_the_configuration(
    tmp_path: Path, tiny_llama_folder: Path, changes: dict[str, Any], reason: str
) -> None:
    critic = {"start": "reward_model", **changes.get("critic", {})}
    with pytest.raises(ValueError, match=reason):
        ppo_config(tmp_path, tiny_llama_folder, **(changes | {"critic": critic}))


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_a_second_model_shares_nothing_with_the_policy(
    tmp_path: Path, tiny_llama_folder: Path, tuning: dict[str, Any]
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": tuning}, critic={"kind": "model"})
    policy, critic = policy_and_critic(config)
    assert critic.adapter is None
    assert critic.backbone is not policy.backbone
    assert critic.backbone.adapters.names == ()
    assert torch.count_nonzero(critic.values(ragged_batch())) == 0
    body = {name for name, _ in critic.trainable()} - {"head.weight", "head.bias"}
    assert len(body) == len(dict(critic.backbone.model.base_model.named_parameters()))
    assert {id(p) for _, p in policy.trainable()} & {id(p) for _, p in critic.trainable()} == set()


def test_full_tuning_has_a_second_model_by_default_and_lora_an_adapter(tmp_path: Path, tiny_llama_folder: Path) -> None:
    kinds = [ppo_config(tmp_path, tiny_llama_folder, model={"tuning": tuning}).critic_kind for tuning in (FULL, LORA)]
    assert kinds == ["model", "adapter"]


@pytest.mark.parametrize("tuning", [LORA, FULL], ids=["lora", "full"])
def test_a_head_on_the_trunk_reads_the_policys_states_and_owns_nothing_else(
    tmp_path: Path, tiny_llama_folder: Path, tuning: dict[str, Any]
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": tuning}, critic={"kind": "head"})
    policy, critic = policy_and_critic(config)
    assert critic.state().keys() == {"head.weight", "head.bias"}
    assert [name for name, _ in critic.trainable()] == ["head.weight", "head.bias"]
    batch = ragged_batch()
    with torch.no_grad():
        critic.head.weight.fill_(0.5)
        for _, parameter in policy.trainable():
            parameter += 0.1
        states = policy.states(batch)
    expected = (0.5 * states.sum(-1)).masked_fill(~batch.response_mask, 0.0)
    assert torch.allclose(critic.values(batch), expected, atol=1e-4)
    assert float(expected.detach().abs().max()) > 0.1
    with pytest.raises(ValueError, match="value head: the tensors do not fit"):
        critic.load_state(critic.state() | {"layer": torch.ones(1)})


def test_the_same_seed_gives_the_same_critic_and_another_seed_another(tmp_path: Path, tiny_llama_folder: Path) -> None:
    states = [critic_of(ppo_config(tmp_path, tiny_llama_folder, seed=seed)).state() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_a_critic_learns_its_returns(tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path) -> None:
    config = ppo_config(
        tmp_path,
        tiny_llama_folder,
        reward=[source(reward_folder)],
        algorithm={"epochs": 30, "minibatches": 1, "value_clip_range": 100.0},
        steps=1,
    )
    policy, critic = policy_and_critic(config)
    learner = Learner(policy, critic, config=config)
    experience = experience_for(learner)

    def error() -> float:
        values = learner.values(experience.prompts, experience.responses)
        return float(np.mean((np.concatenate(values) - np.concatenate(experience.returns)) ** 2))

    before = error()
    learner.update(experience, step=0)
    assert error() < 0.1 * before
