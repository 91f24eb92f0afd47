"""Two ranks give the numbers of one: the same ragged batch; whole layers or cut ones; adapters or all weights."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.experience import Experience
from rlhf.runtime.distributed import ALONE
from tests import rank_tasks
from tests.rank_processes import RankProcesses
from tests.rank_tasks import Outcome
from tests.tiny_ppo import experience_for, merged, ppo_settings, with_ptx

ROWS = (0, 1, 2, 1, 0, 2, 1)
"""Sequences of 5, 5 and 3 tokens: seven do not divide, and with 12 tokens a pass the ranks need unlike many."""
FULL = {"kind": "full"}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora, adapter critic": {},
    "full, second model, l2_sp": {
        "model": {"tuning": FULL},
        "algorithm": {"retention": {"kind": "l2_sp", "coefficient": 0.5}},
    },
}
MORE_VARIANTS: dict[str, dict[str, Any]] = {
    "lora, head on the trunk": {"critic": {"kind": "head"}},
    "full, head on the trunk": {"model": {"tuning": FULL}, "critic": {"kind": "head"}},
    "full, checkpointed, more ranks than rows": {
        "model": {"tuning": FULL},
        "activation_checkpointing": True,
        "algorithm": {"minibatches": 7, "epochs": 1},
        "rollout": {"prompts_per_step": 7},
    },
    "lora, checkpointed, importance": {"activation_checkpointing": True, "algorithm": {"importance_cap": 2.0}},
}
METRICS_OF_ONE_PROCESS = {"perf/padding_waste"}
"""Ghosts are padding, too."""


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankProcesses]:
    processes = RankProcesses(2)
    yield processes
    processes.close()


@pytest.fixture
def settings(tmp_path: Path, tiny_llama_folder: Path) -> dict[str, Any]:
    # With a small epsilon Adam turns a gradient that is nothing but rounding into a whole step; with longer steps a
    # token comes to lie at the edge of a clip, and one process differs as much from itself with other micro-batches.
    smooth = {"learning_rate": 5e-3, "epsilon": 1.0}
    changes: dict[str, Any] = {"optimizer": smooth, "critic": {"optimizer": smooth}, "micro_batch_tokens": 12}
    return with_ptx(tmp_path, ppo_settings(tmp_path, tiny_llama_folder, **changes))


def experience_of(settings: dict[str, Any]) -> Experience:
    return experience_for(rank_tasks.learner_of(settings), rows=ROWS)


def assert_alike(one: Outcome, others: Sequence[Outcome], *, tolerance: float = 1e-4) -> None:
    """The outcome of one process is that of each rank; the ranks agree to the last bit."""
    for other in others:
        for expected, actual in zip(one.metrics, other.metrics, strict=True):
            assert expected.keys() == actual.keys()
            for name in expected.keys() - METRICS_OF_ONE_PROCESS:
                assert actual[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance), name
        for expected, actual in ((one.values, other.values), (one.logprobs, other.logprobs)):
            np.testing.assert_allclose(np.concatenate(actual), np.concatenate(expected), atol=tolerance)
        assert other.perplexity == pytest.approx(one.perplexity, rel=tolerance)
        assert other.state.values == one.state.values
    assert others[0].metrics == others[1].metrics
    state = others[0].state.tensors
    assert state.keys() == one.state.tensors.keys()
    for name, tensor in one.state.tensors.items():
        assert state[name].dtype == tensor.dtype
        assert torch.allclose(state[name], tensor, atol=tolerance), name


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_two_ranks_give_the_numbers_of_one(
    ranks: RankProcesses, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    settings = merged(settings, **changes)
    experience = experience_of(settings)
    one = rank_tasks.update_twice(ALONE, settings, experience, is_sharded=False)
    for is_sharded in (False, True):
        assert_alike(one, ranks.run(rank_tasks.update_twice, settings, experience, is_sharded=is_sharded))


@pytest.mark.slow
@pytest.mark.parametrize("changes", MORE_VARIANTS.values(), ids=MORE_VARIANTS)
def test_two_ranks_give_the_numbers_of_one_with_every_option(
    ranks: RankProcesses, settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    test_two_ranks_give_the_numbers_of_one(ranks, settings, changes)


@pytest.mark.slow
def test_two_ranks_share_the_examples_of_the_fisher_information(ranks: RankProcesses, settings: dict[str, Any]) -> None:
    retention = {"kind": "ewc", "coefficient": 0.5, "data": "old.jsonl"}
    settings = merged(settings, algorithm={"retention": retention})
    experience = experience_of(settings)
    one = rank_tasks.update_twice(ALONE, settings, experience, is_sharded=False)
    assert one.metrics[0]["loss/retention"] > 0
    assert_alike(one, ranks.run(rank_tasks.update_twice, settings, experience, is_sharded=False))


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [False, True], ids=["whole", "sharded"])
def test_bfloat16_weights_move_as_their_float32_masters_on_two_ranks(
    ranks: RankProcesses, settings: dict[str, Any], *, is_sharded: bool
) -> None:
    settings = merged(settings, model={"tuning": FULL, "dtype": "bfloat16"}, critic={"kind": "head"})
    experience = experience_of(settings)
    one = rank_tasks.update_twice(ALONE, settings, experience, is_sharded=False)
    first, second = ranks.run(rank_tasks.update_twice, settings, experience, is_sharded=is_sharded)
    assert first.metrics == second.metrics
    start = rank_tasks.flatten(rank_tasks.learner_of(settings).publish())
    moved, expected = (rank_tasks.flatten(x.state.tensors_of("policy")) - start for x in (first, one))
    # Sums in another order, rounded to 8 bits: the steps point the same way.
    assert torch.cosine_similarity(moved, expected, dim=0) > 0.98
    assert any(name.endswith("/residual") for name in first.state.tensors)


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("tuning", [{"kind": "lora", "rank": 2}, FULL], ids=["lora", "full"])
def test_a_state_moves_between_any_numbers_of_ranks(
    ranks: RankProcesses, settings: dict[str, Any], tuning: dict[str, Any], *, is_sharded: bool
) -> None:
    settings = merged(settings, model={"tuning": tuning})
    experience = experience_of(settings)
    halfway = rank_tasks.update_twice(ALONE, settings, experience, is_sharded=False).state
    one = rank_tasks.resume(ALONE, settings, experience, halfway, is_sharded=False)
    assert_alike(one, ranks.run(rank_tasks.resume, settings, experience, halfway, is_sharded=is_sharded))
    first, _ = ranks.run(rank_tasks.update_twice, settings, experience, is_sharded=is_sharded)
    assert_alike(
        rank_tasks.resume(ALONE, settings, experience, first.state, is_sharded=False),
        ranks.run(rank_tasks.resume, settings, experience, first.state, is_sharded=is_sharded),
    )


def test_every_rank_stops_at_a_loss_that_is_no_number(ranks: RankProcesses, settings: dict[str, Any]) -> None:
    settings = merged(settings, algorithm={"minibatches": 1})
    experience = experience_of(settings)
    spoiled = [row.copy() for row in experience.advantages]
    spoiled[3][0] = np.nan
    answers = ranks.run(rank_tasks.diverge, settings, replace(experience, advantages=spoiled))
    for message, is_unmoved in answers:
        assert "policy loss is nan" in message
        assert is_unmoved


@pytest.mark.parametrize(
    ("tuning", "sharding"),
    [
        pytest.param({"kind": "lora", "rank": 2}, "none", marks=pytest.mark.slow, id="lora, whole"),
        pytest.param({"kind": "lora", "rank": 2}, "full", marks=pytest.mark.slow, id="lora, sharded"),
        pytest.param(FULL, "none", marks=pytest.mark.slow, id="full, whole"),
        pytest.param(FULL, "full", id="full, sharded"),
    ],
)
def test_what_ranks_publish_and_save_is_whole(
    ranks: RankProcesses, settings: dict[str, Any], tuning: dict[str, Any], sharding: str, tmp_path: Path
) -> None:
    one_settings = merged(settings, model={"tuning": tuning}, placement={"kind": "split"})
    learner = {"workers": 2, "sharding": sharding}
    two_settings = merged(one_settings, placement={"kind": "split", "learner": learner})
    experience = experience_of(settings)
    one = rank_tasks.publish(ALONE, one_settings, experience, str(tmp_path / "one"))
    first, second = ranks.run(rank_tasks.publish, two_settings, experience, str(tmp_path / "two"))
    assert [bucket.header.buckets for bucket in first.buckets] == [len(one.buckets)] * len(one.buckets)
    for expected, bucket, follower in zip(one.buckets, first.buckets, second.buckets, strict=True):
        assert bucket.checksum == follower.checksum
        assert bucket.settings == expected.settings
        assert bucket.first_rows == expected.first_rows
        for name, array in expected.tensors.items():
            np.testing.assert_allclose(bucket.tensors[name], array, atol=1e-4)
    assert {path.name for path in (tmp_path / "one" / "model").iterdir()} == {
        path.name for path in (tmp_path / "two" / "model").iterdir()
    }
    if tuning == FULL:
        saved = [
            AutoModelForCausalLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("one", "two")
        ]
        assert saved[0].keys() == saved[1].keys()
        assert all(torch.allclose(saved[0][name], saved[1][name], atol=1e-4) for name in saved[0])
