"""`retention` of fine-tuning: what it adds to loss and gradient, which examples a step holds, and exact resuming."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from policies.causal import CausalPolicy
from policies.config import ModelConfig
from policies.loading import load_backbone
from rlhf.config import SftConfig
from rlhf.conversations import Example
from rlhf.forgetting.replay import replay_order
from rlhf.forgetting.weight_anchor import diagonal_fisher
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers.sft import SftInputs, run
from tests import rank_tasks
from tests.interrupted_runs import column, require_bitwise_resume, trained_weights
from tests.rank_processes import RankProcesses

NEW = [{"prompt": f"where is the {animal}?", "completion": " on the mat"} for animal in ("cat", "dog", "bird", "girl")]
OLD = [{"prompt": "who is big?", "completion": " the dog"}, {"text": "the cat sat on the mat and the dog ran"}]
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
KL, L2_SP = {"kind": "kl", "coefficient": 2.0}, {"kind": "l2_sp", "coefficient": 0.3}


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    def source(name: str, rows: list[dict[str, str]]) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    def build(name: str, retention: dict[str, Any], **changes: Any) -> SftConfig:
        if retention["kind"] in ("replay", "ewc"):
            retention = {"data": source("old.jsonl", OLD)} | retention
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "model": {"path": str(tiny_llama_folder), "tuning": changes.pop("tuning", {"kind": "full"})},
            "data": {"train": source("new.jsonl", NEW)},
            "epochs": 3,
            "examples_per_step": 4,
            "micro_batch_examples": 2,
            "max_tokens": 64,
            "optimizer": {"learning_rate": 1e-2, "max_grad_norm": 1e9, "schedule": "constant"},
            "checkpoint": {"every_steps": 1},
            "tracking": {"wandb": "off"},
            "retention": retention,
        }
        return SftConfig.model_validate(settings | changes)

    return build


# --- replay -----------------------------------------------------------------------------------------------------------


def test_every_step_holds_its_share_of_old_examples_and_every_epoch_all_new_ones() -> None:
    lengths = [5, 9, 2, 7, 4, 3, 8]  # Five new, two old.
    order = replay_order(lengths, 5, share=0.4, epochs=2.2, examples_per_step=5, seed=3)
    steps = [order[start : start + 5] for start in range(0, len(order), 5)]
    new = [[index for index in step if index < 5] for step in steps]
    assert [len(step) for step in new] == [3, 3, 3, 2]
    assert [len(step) for step in steps] == [5, 5, 5, 4]  # Two old beside two new: 4/3, rounded up.
    told = Counter(index for step in new for index in step)
    assert (min(told.values()), max(told.values()), sum(told.values())) == (2, 3, 11)
    assert all(sorted(index for index in step if index > 4) == [5, 6] for step in steps)
    assert all(step == sorted(step, key=lambda index: lengths[index]) for step in steps)
    assert order == replay_order(lengths, 5, share=0.4, epochs=2.2, examples_per_step=5, seed=3)


@pytest.mark.parametrize(("share", "old"), [(0.01, 1), (0.99, 3)])
def test_a_step_has_an_old_and_a_new_example_at_least(share: float, old: int) -> None:
    order = replay_order([1] * 8, 4, share=share, epochs=1, examples_per_step=4, seed=0)
    assert sum(index >= 4 for index in order[:4]) == old


def test_old_text_is_learned_in_whole_and_old_demonstrations_by_their_completion(configure: Any) -> None:
    inputs = SftInputs(configure("run", {"kind": "replay", "share": 0.5}))
    answer, text = sorted(inputs.examples[4:], key=lambda example: len(example.token_ids))
    assert inputs.new == 4
    assert text.loss_mask.tolist() == [False] + [True] * (len(text.token_ids) - 1)
    assert 0 < answer.loss_mask.sum() < len(answer.token_ids) - 1


def test_epochs_count_new_examples_and_the_summary_old_ones(configure: Any) -> None:
    config = configure("run", {"kind": "replay", "share": 0.5})
    run(config, resume=False)
    assert column(config, "progress/epoch") == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    summary = RunFiles(config.run_dir).read_summary()
    assert (summary["examples"], summary["replayed"]) == (24, 12)


# --- penalties --------------------------------------------------------------------------------------------------------


def learned_logprobs(folder: Path, examples: list[Example]) -> torch.Tensor:
    """By the library's own logits: (N, V) log-probs at every learned token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found: list[torch.Tensor] = []
    for example in examples:
        with torch.no_grad():
            logits = model(input_ids=torch.from_numpy(example.token_ids).long()[None]).logits[0]
        found += [logits[position - 1].log_softmax(-1) for position in np.flatnonzero(example.loss_mask)]
    return torch.stack(found)


@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_the_kl_is_that_from_the_start_by_the_librarys_logits(
    configure: Any, tiny_llama_folder: Path, tuning: dict[str, Any]
) -> None:
    config = configure("run", KL, tuning=tuning, checkpoint={"every_steps": 9}, epochs=2)
    run(config, resume=False)
    assert column(config, "loss/retention")[0] == pytest.approx(0.0, abs=1e-5)
    assert column(config, "loss/train")[1] < column(config, "loss/train")[0]
    if tuning["kind"] == "full":
        one_step = configure("one-step", KL, epochs=1)
        run(one_step, resume=False)
        examples = SftInputs(config).examples
        old, new = (
            learned_logprobs(folder, examples) for folder in (tiny_llama_folder, Path(one_step.run_dir) / "model")
        )
        expected = 2.0 * (old.exp() * (old - new)).sum(-1).mean().item()
        assert expected > 0.01
        assert column(config, "loss/retention")[1] == pytest.approx(expected, rel=1e-3)


def test_the_kl_holds_the_model_back(configure: Any) -> None:
    held, free = configure("held", {"kind": "kl", "coefficient": 50.0}), configure("free", {"kind": "none"})
    for config in (held, free):
        run(config, resume=False)
    assert "loss/retention" not in RunFiles(free.run_dir).read_metrics()[0]
    assert column(held, "loss/train")[0] == column(free, "loss/train")[0]
    assert column(held, "loss/train")[-1] > column(free, "loss/train")[-1]


def test_the_pull_is_measured_from_the_start(configure: Any, tiny_llama_folder: Path) -> None:
    one_step = configure("one-step", L2_SP, epochs=1)
    run(one_step, resume=False)
    two_steps = configure("two-steps", L2_SP, epochs=2)
    run(two_steps, resume=False)
    start, after = load_file(tiny_llama_folder / "model.safetensors"), trained_weights(one_step)
    expected = 0.15 * sum((after[name] - start[name]).square().sum().item() for name in after)
    assert column(two_steps, "loss/retention")[0] == 0.0
    assert column(two_steps, "loss/retention")[1] == pytest.approx(expected, rel=1e-4)


def test_a_strong_pull_keeps_the_weights(configure: Any, tiny_llama_folder: Path) -> None:
    start = load_file(tiny_llama_folder / "model.safetensors")

    def distance(name: str, retention: dict[str, Any]) -> float:
        config = configure(name, retention, epochs=4, checkpoint={"every_steps": 99})
        run(config, resume=False)
        return sum((tensor - start[key]).square().sum().item() for key, tensor in trained_weights(config).items())

    assert distance("held", {"kind": "l2_sp", "coefficient": 100.0}) < 0.5 * distance("free", {"kind": "none"})


def test_the_fisher_information_is_the_mean_of_squared_gradients_of_each_example(tiny_llama_folder: Path) -> None:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder)))
    policy = CausalPolicy(backbone, adapter=None, temperature=1.0)
    parameters = [parameter for _, parameter in policy.trainable()]
    examples = [
        Example(np.array([5, 6, 7, 8], np.int32), np.array([False, False, True, True])),
        Example(np.array([9, 4, 3], np.int32), np.array([False, True, True])),
    ]
    found = diagonal_fisher(policy, parameters, examples)
    expected = [torch.zeros_like(parameter) for parameter in parameters]
    for example in examples:
        ids = torch.from_numpy(example.token_ids).long()
        logprobs = backbone.model(input_ids=ids[None]).logits[0].log_softmax(-1)
        learned = np.flatnonzero(example.loss_mask)
        total = torch.stack([logprobs[position - 1, ids[position]] for position in learned]).sum()
        for square, gradient in zip(expected, torch.autograd.grad(total, parameters), strict=True):
            square += gradient.square() / 2
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


# --- exactness --------------------------------------------------------------------------------------------------------

EVERY_KIND = [{"kind": "replay", "share": 0.5}, KL, L2_SP, {"kind": "ewc", "coefficient": 5.0}]


WITH_EVERY_TUNING = [
    # One pair each for what a run recomputes when it is resumed: order, old model, start, Fisher information.
    pytest.param(
        retention, tuning, id=f"{retention['kind']}-{tuning['kind']}", marks=() if is_default else pytest.mark.slow
    )
    for retention in EVERY_KIND
    for tuning in ({"kind": "full"}, LORA)
    for is_default in [(retention["kind"], tuning["kind"]) in (("kl", "full"), ("ewc", "lora"))]
]


@pytest.mark.parametrize(("retention", "tuning"), WITH_EVERY_TUNING)
def test_an_interrupted_run_resumes_to_the_bits_of_a_straight_one(
    configure: Any, monkeypatch: pytest.MonkeyPatch, retention: dict[str, Any], tuning: dict[str, Any]
) -> None:
    straight, broken = (configure(name, retention, tuning=tuning) for name in ("straight", "broken"))
    keys = ("loss/train", *(["loss/retention"] if retention["kind"] != "replay" else []))
    require_bitwise_resume(run, straight, broken, keys, monkeypatch, at_step=3)


def test_micro_batches_change_nothing_but_rounding(configure: Any) -> None:
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 1e-2, "epsilon": 1.0, "max_grad_norm": 1e9}}
    whole, single = (configure(f"of-{size}", KL, micro_batch_examples=size, **changes) for size in (4, 1))
    for config in (whole, single):
        run(config, resume=False)
    for key in ("loss/train", "loss/retention"):
        assert column(single, key) == pytest.approx(column(whole, key), rel=1e-3, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("retention", EVERY_KIND, ids=lambda retention: retention["kind"])
def test_two_ranks_train_the_model_of_one(configure: Any, retention: dict[str, Any]) -> None:
    changes = {"optimizer": {"learning_rate": 1e-2, "epsilon": 1.0}}
    one, two = configure("one", retention, **changes), configure("two", retention, **changes)
    run(one, resume=False)
    ranks = RankProcesses(2)
    try:
        ranks.run(rank_tasks.finetune, two.model_dump(mode="json"), resume=False)
    finally:
        ranks.close()
    for key in ("loss/train", "policy/grad_norm", *(["loss/retention"] if retention["kind"] != "replay" else [])):
        assert column(two, key) == pytest.approx(column(one, key), rel=1e-3, abs=1e-7)
    trained, expected = trained_weights(two), trained_weights(one)
    assert all(torch.allclose(trained[name], expected[name], atol=1e-5) for name in expected)


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["replay", "ewc"])
def test_old_data_must_be_named(configure: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=rf"retention.data is missing: retention.kind={kind} needs old rows"):
        configure("run", {"kind": kind, "data": None})


def test_replay_needs_room_in_a_step(configure: Any) -> None:
    with pytest.raises(ValueError, match=r"examples_per_step=1: retention.kind=replay needs room"):
        configure("run", {"kind": "replay"}, examples_per_step=1, micro_batch_examples=1)


def test_a_bad_old_row_is_named(configure: Any, tmp_path: Path) -> None:
    config = configure("run", {"kind": "replay"})
    (tmp_path / "old.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(ValueError, match=r"retention.data=.*old.jsonl, row 0: text is ''"):
        run(config, resume=False)
