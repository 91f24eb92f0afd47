"""The roles of one process: each alone and all together compute the same numbers, and only what trains changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.loading import load_backbone
from policies.tokenization import decode
from reward.composite import build_reward
from reward.interface import RewardRequest
from rlhf.config import PpoConfig
from rlhf.data import load_rows
from rlhf.experience import Experience, build_experience
from rlhf.roles import RoleHost, pretraining_texts
from rlhf.runtime.placement import ALL_ROLES, RoleName
from rollout.generation import repeat_prompts
from rollout.prompts import prompts_from_rows
from rollout.types import Completion, Prompt, RolloutBatch
from rollout.weight_sync import ChecksumError, StaleWeightsError, WeightUpdate
from tests.tiny_ppo import merged, ppo_config, ppo_settings, with_ptx, write_reward_adapter, write_rows

FULL = {"kind": "full"}


@pytest.fixture(scope="module")
def reward_folder(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reward_adapter(tmp_path_factory.mktemp("reward") / "model", tiny_llama_folder)


@pytest.fixture
def config(tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path) -> PpoConfig:
    model = {"kind": "model", "name": "proxy", "path": str(reward_folder), "device": "cpu"}
    return ppo_config(tmp_path, tiny_llama_folder, reward=[model, {"kind": "length", "maximum_words": 2}])


def jobs_of(config: PpoConfig) -> tuple[list[Prompt], list[int]]:
    tokenizer = load_backbone(config.model).tokenizer
    rows = load_rows(config.data.train)
    prompts = prompts_from_rows(rows, tokenizer, max_prompt_tokens=64, source="test").prompts
    return repeat_prompts(prompts[:3], 2)


def generate(host: RoleHost, config: PpoConfig, *, version: int = 0) -> list[Completion]:
    prompts, indices = jobs_of(config)
    return host.generate(prompts, indices, seed=config.seed, step=0, expected_version=version)


def requests_for(config: PpoConfig, completions: list[Completion]) -> list[RewardRequest]:
    prompts, _ = jobs_of(config)
    tokenizer = load_backbone(config.model).tokenizer
    return [
        RewardRequest(prompt.text, decode(c.token_ids, tokenizer), prompt.token_ids, c.token_ids)
        for prompt, c in zip(prompts, completions, strict=True)
    ]


def ids_of(config: PpoConfig, completions: list[Completion]) -> tuple[list[Any], list[Any]]:
    return [prompt.token_ids for prompt in jobs_of(config)[0]], [c.token_ids for c in completions]


def experience_of(host: RoleHost, config: PpoConfig, *, version: int = 0) -> Experience:
    """One step up to the update, all in one host."""
    completions = generate(host, config, version=version)
    prompts, responses = ids_of(config, completions)
    experience, _ = build_experience(
        RolloutBatch(jobs_of(config)[0], completions),
        host.score(requests_for(config, completions)),
        host.reference_logprobs(prompts, responses),
        host.values(prompts, responses),
        algorithm=config.algorithm,
        kl_coefficient=0.05,
    )
    return experience


def published(host: RoleHost, version: int) -> WeightUpdate:
    header = host.pack_update(version, 0, 2**30)
    update = host.packed_update()
    assert update.header == header
    return update


def hosts_of(config: PpoConfig) -> dict[RoleName, RoleHost]:
    return {role: RoleHost(config, [role]) for role in ALL_ROLES}


def assert_rows_close(actual: list[Any], expected: list[Any], tolerance: float) -> None:
    np.testing.assert_allclose(np.concatenate(actual), np.concatenate(expected), atol=tolerance)


# --- together and alone -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_role_alone_computes_what_it_computes_beside_the_others(
    config: PpoConfig, tuning: str, tmp_path: Path, tiny_llama_folder: Path
) -> None:
    if tuning == "full":
        sources = [source.model_dump() for source in config.reward]
        config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": FULL}, reward=sources)
    together, alone = RoleHost(config, ALL_ROLES), hosts_of(config)
    completions = generate(together, config)
    other = generate(alone["rollout"], config)
    assert [c.token_ids.tolist() for c in completions] == [c.token_ids.tolist() for c in other]
    assert_rows_close([c.logprobs for c in other], [c.logprobs for c in completions], 1e-5)

    prompts, responses = ids_of(config, completions)
    for method, host in (
        ("reference_logprobs", alone["reference"]),
        ("values", alone["learner"]),
        ("logprobs", alone["learner"]),
    ):
        expected = getattr(together, method)(prompts, responses)
        assert_rows_close(getattr(host, method)(prompts, responses), expected, 1e-5)
    requests = requests_for(config, completions)
    scores = [host.score(requests) for host in (alone["reward"], together)]
    np.testing.assert_allclose(scores[0].scores, scores[1].scores, atol=1e-4)
    assert scores[0].components.keys() == scores[1].components.keys() == {"proxy", "length"}


def test_scores_on_the_shared_base_are_those_of_the_model_on_its_own(config: PpoConfig) -> None:
    host = RoleHost(config, ALL_ROLES)
    requests = requests_for(config, generate(host, config))
    alone = build_reward(config.reward, policy_tokenizer=load_backbone(config.model).tokenizer)(requests)
    np.testing.assert_allclose(host.score(requests).components["proxy"], alone.components["proxy"], atol=1e-4)
    assert np.ptp(alone.components["proxy"]) > 0.05


def test_what_is_sampled_first_has_the_log_probs_of_the_learner_and_of_the_reference(config: PpoConfig) -> None:
    host = RoleHost(config, ALL_ROLES)
    completions = generate(host, config)
    prompts, responses = ids_of(config, completions)
    sampled = [c.logprobs for c in completions]
    # A new adapter changes nothing, so policy, reference and base agree before the first update.
    assert_rows_close(host.logprobs(prompts, responses), sampled, 1e-4)
    assert_rows_close(host.reference_logprobs(prompts, responses), sampled, 1e-4)
    assert_rows_close(host.canary(prompts, responses), sampled, 1e-4)


def test_a_policy_that_starts_from_an_adapter_is_anchored_at_that_adapter(
    config: PpoConfig, tmp_path: Path, tiny_llama_folder: Path
) -> None:
    first = RoleHost(config, ALL_ROLES)
    first.update(experience_of(first, config), step=0)
    first.adopt_version(1)
    first.save_model(str(tmp_path / "sft"))
    config = ppo_config(tmp_path, tmp_path / "sft")
    second, base = RoleHost(config, ALL_ROLES), RoleHost(ppo_config(tmp_path, tiny_llama_folder), ["reference"])
    completions = generate(second, config)
    prompts, responses = ids_of(config, completions)
    reference = second.reference_logprobs(prompts, responses)
    assert_rows_close(reference, second.logprobs(prompts, responses), 1e-5)
    assert_rows_close(RoleHost(config, ["reference"]).reference_logprobs(prompts, responses), reference, 1e-5)
    assert np.abs(np.concatenate(reference) - np.concatenate(base.reference_logprobs(prompts, responses))).max() > 1e-3

    second.update(experience_of(second, config), step=0)
    assert_rows_close(second.reference_logprobs(prompts, responses), reference, 0.0)
    assert np.abs(np.concatenate(second.logprobs(prompts, responses)) - np.concatenate(reference)).max() > 1e-3


@pytest.mark.parametrize("tuning", [{"kind": "lora", "rank": 2, "alpha": 32.0, "target_modules": "all-linear"}, FULL])
def test_a_saved_policy_is_loaded_back_with_the_same_log_probs(
    tmp_path: Path, tiny_llama_folder: Path, tuning: dict[str, Any]
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": tuning})
    host = RoleHost(config, ALL_ROLES)
    host.update(experience_of(host, config), step=0)
    host.save_model(str(tmp_path / "model"))
    prompts, responses = ids_of(config, generate(host, config))
    again = RoleHost(ppo_config(tmp_path, tmp_path / "model"), ["learner"])
    assert_rows_close(again.logprobs(prompts, responses), host.logprobs(prompts, responses), 1e-5)


def test_the_context_is_that_of_the_model(config: PpoConfig) -> None:
    assert RoleHost(config, ["learner"]).context_tokens() == 64


# --- weights on their way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_published_weights_make_a_rollout_worker_the_learners_equal(
    tmp_path: Path, tiny_llama_folder: Path, tuning: str
) -> None:
    changes = {"model": {"tuning": FULL}} if tuning == "full" else {}
    config = ppo_config(tmp_path, tiny_llama_folder, **changes)
    trained, worker = RoleHost(config, ALL_ROLES), RoleHost(config, ["rollout"])
    completions = generate(trained, config)
    prompts, responses = ids_of(config, completions)
    trained.update(experience_of(trained, config), step=0)
    stale = worker.canary(prompts, responses)
    update = published(trained, 1)
    ack = worker.apply_update(update)
    assert (ack.version, ack.checksum) == (1, update.checksum)
    assert np.abs(np.concatenate(stale) - np.concatenate(trained.logprobs(prompts, responses))).max() > 1e-2
    assert_rows_close(worker.canary(prompts, responses), trained.logprobs(prompts, responses), 1e-5)
    assert [c.policy_version for c in generate(worker, config, version=1)] == [1] * 6


def test_a_damaged_or_old_update_is_refused_and_the_worker_stays_as_it_was(config: PpoConfig) -> None:
    learner, worker = RoleHost(config, ["learner"]), RoleHost(config, ["rollout"])
    prompts, responses = ids_of(config, generate(worker, config))
    before = worker.canary(prompts, responses)
    update = published(learner, 2)
    name = next(iter(update.tensors))
    damaged = replace(update, tensors={**update.tensors, name: update.tensors[name] + 1})
    with pytest.raises(ChecksumError, match="weight update 2"):
        worker.apply_update(damaged)
    assert_rows_close(worker.canary(prompts, responses), before, 0.0)
    worker.apply_update(update)
    with pytest.raises(StaleWeightsError, match="1 is older than the worker's version 2"):
        worker.apply_update(published(learner, 1))
    with pytest.raises(StaleWeightsError, match="version 2, asked was 3"):
        generate(worker, config, version=3)


# --- what trains, and what does not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["plain", "ptx"])
def test_training_moves_policy_and_critic_and_nothing_else(config: PpoConfig, tmp_path: Path, mix: str) -> None:
    if mix == "ptx":
        config = PpoConfig.model_validate(with_ptx(tmp_path, config.model_dump()))
    host = RoleHost(config, ALL_ROLES)
    backbone = host._backbone  # the tensors themselves are what this test is about
    completions = generate(host, config)
    prompts, responses = ids_of(config, completions)
    requests = requests_for(config, completions)
    names = {"policy", "critic", "reward-proxy"}
    assert set(backbone.adapters.names) == names
    before = {name: parameter.clone() for name, parameter in backbone.model.named_parameters()}
    moving = {id(p) for name in ("policy", "critic") for _, p in backbone.adapters.parameters(name)}
    reference, scores = host.reference_logprobs(prompts, responses), host.score(requests).scores

    for step in range(2):
        host.update(experience_of(host, config, version=step), step=step)
        host.adopt_version(step + 1)

    changed = {name for name, p in backbone.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in backbone.model.named_parameters() if id(p) in moving}
    assert all(p.grad is None for p in backbone.model.parameters())
    # Bitwise: adapters off is the base, the base is the reference, and the judge has not moved.
    assert_rows_close(host.reference_logprobs(prompts, responses), reference, 0.0)
    np.testing.assert_array_equal(host.score(requests).scores, scores)
    untouched = load_backbone(config.model)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(backbone.model(input_ids=ids).logits, untouched.model(input_ids=ids).logits)


def test_full_tuning_keeps_its_reference_and_its_critic_apart(tmp_path: Path, tiny_llama_folder: Path) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": FULL})
    host = RoleHost(config, ALL_ROLES)
    prompts, responses = ids_of(config, generate(host, config))
    reference = host.reference_logprobs(prompts, responses)
    host.update(experience_of(host, config), step=0)
    assert_rows_close(host.reference_logprobs(prompts, responses), reference, 0.0)
    assert np.abs(np.concatenate(host.logprobs(prompts, responses)) - np.concatenate(reference)).max() > 1e-2


def test_under_full_tuning_a_reward_adapter_on_the_same_base_does_not_move_with_it(
    tmp_path: Path, tiny_llama_folder: Path, reward_folder: Path
) -> None:
    sources = [{"kind": "model", "path": str(reward_folder), "device": "cpu"}]
    config = ppo_config(tmp_path, tiny_llama_folder, model={"tuning": FULL}, reward=sources)
    host = RoleHost(config, ALL_ROLES)
    requests = requests_for(config, generate(host, config))
    before = host.score(requests).scores
    host.update(experience_of(host, config), step=0)
    np.testing.assert_array_equal(host.score(requests).scores, before)


# --- pretraining text -------------------------------------------------------------------------------------------------


def test_bad_rows_of_the_pretraining_text_obey_on_bad_row(tmp_path: Path, tiny_llama_folder: Path) -> None:
    settings = with_ptx(tmp_path, ppo_settings(tmp_path, tiny_llama_folder))
    rows = [{"text": "the cat sat on the mat"}, {"txt": "oops"}, {"text": "a dog ran over the hill"}]
    source = write_rows(tmp_path / "bad.jsonl", rows)
    data = PpoConfig.model_validate(merged(settings, data={"pretrain": source})).data
    with pytest.raises(ValueError, match=r"data\.pretrain=.*bad\.jsonl, row 1: text is None.*on_bad_row=skip"):
        pretraining_texts(data)
    skipping = PpoConfig.model_validate(merged(settings, data={"pretrain": source, "on_bad_row": "skip"}))
    texts, skipped = pretraining_texts(skipping.data)
    assert (len(texts), len(skipped)) == (2, 1)
    RoleHost(skipping, ["learner"])
