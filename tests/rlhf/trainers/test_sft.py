"""Supervised fine-tuning end to end on a tiny model: what is learned, determinism, resuming, adapters, refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.backbone import Backbone
from policies.config import ModelConfig
from policies.loading import load_backbone
from rlhf.config import SftConfig
from rlhf.conversations import Example, examples_from_rows
from rlhf.example_order import example_order
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.distributed import Ranks
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_state import load_latest_checkpoint
from rlhf.trainers import sft
from rlhf.trainers.sft import run
from rlhf.trainers.trl_sft import share_of_steps, train_with_trl
from tests import rank_tasks
from tests.interrupted_runs import column, require_bitwise_resume, trained_weights
from tests.rank_processes import RankProcesses

ROWS = [
    {"prompt": f"where is the {animal}?", "completion": f" the {animal} is {place}" + " now" * (index % 3)}
    for index, (animal, place) in enumerate(
        (animal, place) for animal in ("cat", "dog", "bird") for place in ("on the mat", "in the tree", "on a hill")
    )
]
HELD_OUT = [{"prompt": "where is the girl?", "completion": " the girl is on the mat"}, ROWS[0]]
LORA = {"kind": "lora", "rank": 4, "alpha": 8}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    def build(name: str = "run", *, tuning: dict[str, Any] | None = None, **changes: Any) -> SftConfig:
        settings: dict[str, Any] = {
            "run_dir": str(tmp_path / name),
            "model": {"path": str(tiny_llama_folder), "tuning": tuning or {"kind": "full"}},
            "data": {
                "train": write_rows(tmp_path / "train.jsonl", ROWS),
                "eval": write_rows(tmp_path / "eval.jsonl", HELD_OUT),
            },
            "epochs": 2.5,  # 23 examples: 5 steps of 4 and one of 3
            "examples_per_step": 4,
            "micro_batch_examples": 4,
            "max_tokens": 64,
            "optimizer": {"learning_rate": 1e-2},
            "checkpoint": {"every_steps": 2},
            "tracking": {"wandb": "off"},
        }
        return SftConfig.model_validate(settings | changes)

    return build


def mean_completion_nll(folder: Path, examples: list[Example], adapter: Path | None = None) -> float:
    """By hand from the library's own logits: token t is predicted at t - 1; only learned tokens count."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    losses: list[float] = []
    for example in examples:
        ids = torch.from_numpy(example.token_ids).long()
        with torch.no_grad():
            logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        learned = np.flatnonzero(example.loss_mask)
        losses += [-logprobs[position - 1, ids[position]].item() for position in learned]
    return float(np.mean(losses))


def encode(rows: list[dict[str, Any]], folder: Path) -> list[Example]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return examples_from_rows(rows, tokenizer, max_tokens=64, source="rows").examples


def test_every_epoch_is_a_permutation_and_the_last_is_cut() -> None:
    def order(seed: int) -> list[int]:
        return example_order([7] * 5, epochs=2.5, examples_per_step=5, seed=seed)

    assert sorted(order(1)[:5]) == sorted(order(1)[5:10]) == list(range(5))
    assert order(1)[:5] != order(1)[5:10]
    assert len(order(1)) == 13
    assert len(set(order(1)[10:])) == 3
    assert order(1) == order(1)
    assert order(1) != order(2)


def test_examples_of_one_step_stand_by_length() -> None:
    lengths = [9, 3, 7, 5, 1, 8, 2]
    by_chance = example_order(lengths, epochs=1, examples_per_step=1, seed=4)
    sorted_steps = example_order(lengths, epochs=1, examples_per_step=3, seed=4)
    for start in (0, 3, 6):
        assert sorted_steps[start : start + 3] == sorted(by_chance[start : start + 3], key=lambda i: lengths[i])


def test_the_first_loss_is_the_mean_over_completion_tokens_computed_by_hand(
    configure: Any, tiny_llama_folder: Path
) -> None:
    config = configure()
    run(config, resume=False)
    examples = encode(ROWS, tiny_llama_folder)
    lengths = [len(example.token_ids) for example in examples]
    first = example_order(lengths, epochs=2.5, examples_per_step=4, seed=config.seed)[:4]
    expected = mean_completion_nll(tiny_llama_folder, [examples[index] for index in first])
    assert column(config, "loss/train")[0] == pytest.approx(expected, rel=1e-4)


def test_a_run_learns_and_leaves_model_metrics_summary_and_report(configure: Any) -> None:
    config = configure(epochs=10, eval_every_steps=10)
    run(config, resume=False)
    files = RunFiles(config.run_dir)
    losses = column(config, "loss/train")
    assert losses[-1] < 0.5 * losses[0]
    assert [row["step"] for row in files.read_metrics()] == list(range(1, 24))
    assert [row["step"] for row in files.read_metrics() if "eval/loss" in row] == [10, 20, 23]
    assert column(config, "progress/epoch")[-1] == 10
    assert files.report_path.exists()
    assert files.read_summary()["examples"] == 90


def test_the_reported_held_out_loss_is_that_of_the_final_folder(configure: Any) -> None:
    config = configure()
    run(config, resume=False)
    folder = Path(config.run_dir) / "model"
    expected = mean_completion_nll(folder, encode(HELD_OUT, folder))
    assert RunFiles(config.run_dir).read_summary()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_micro_batches_change_nothing_but_rounding(configure: Any) -> None:
    whole, single = configure("whole"), configure("single", micro_batch_examples=1)
    for config in (whole, single):
        run(config, resume=False)
    for key in ("loss/train", "policy/grad_norm", "eval/loss"):
        assert column(single, key) == pytest.approx(column(whole, key), rel=1e-3)


@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA])
def test_an_interrupted_run_resumes_to_the_bits_of_a_straight_one(
    configure: Any, monkeypatch: pytest.MonkeyPatch, tuning: dict[str, Any]
) -> None:
    straight, broken = configure("straight", tuning=tuning), configure("broken", tuning=tuning)
    keys = ("loss/train", "eval/loss", "progress/lr", "progress/tokens")
    require_bitwise_resume(run, straight, broken, keys, monkeypatch, at_step=4)


def test_lora_leaves_the_base_alone_and_an_adapter_that_peft_loads(configure: Any, tiny_llama_folder: Path) -> None:
    config = configure(tuning=LORA)
    base_before = (tiny_llama_folder / "model.safetensors").read_bytes()
    run(config, resume=False)
    folder = Path(config.run_dir) / "model"
    assert (folder / "adapter_config.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert (tiny_llama_folder / "model.safetensors").read_bytes() == base_before
    expected = mean_completion_nll(tiny_llama_folder, encode(HELD_OUT, tiny_llama_folder), adapter=folder)
    assert RunFiles(config.run_dir).read_summary()["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert column(config, "eval/loss")[-1] < mean_completion_nll(tiny_llama_folder, encode(HELD_OUT, tiny_llama_folder))


def test_an_adapter_folder_is_trained_on(configure: Any) -> None:
    first = configure("first", tuning=LORA)
    run(first, resume=False)
    model = {"path": str(Path(first.run_dir) / "model"), "tuning": LORA}
    second = configure("second", model=model)
    run(second, resume=False)
    assert column(second, "loss/train")[0] < column(first, "loss/train")[0]
    assert load_backbone(ModelConfig(**model)).adapters.names == ("policy", "reference")


def test_a_non_finite_loss_stops_with_the_state_before_it(configure: Any) -> None:
    config = configure(optimizer={"learning_rate": 1e30, "schedule": "constant"})
    for resume in (False, True):
        with pytest.raises(NonFiniteLossError, match="training stopped"):
            run(config, resume=resume)
    state = load_latest_checkpoint(RunFiles(config.run_dir).checkpoints_path)
    assert state is not None
    assert state.step == len(column(config, "loss/train")) > 0
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())


def test_the_one_gradient_that_is_not_finite_is_named(configure: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "model.layers.0.mlp.up_proj.weight"

    def poisoned(backbone: Backbone, *arguments: Any, **keywords: Any) -> None:
        dict(backbone.model.named_parameters())[bad].register_hook(lambda gradient: gradient * torch.nan)
        train_with_trl(backbone, *arguments, **keywords)

    monkeypatch.setattr(sft, "train_with_trl", poisoned)
    with pytest.raises(NonFiniteLossError, match="grad_norm is nan at step 0") as error:
        run(configure(), resume=False)
    assert error.value.tensor == f"gradient of {bad}"


def test_examples_longer_than_the_context_are_refused_before_anything_is_written(configure: Any) -> None:
    config = configure(max_tokens=65)
    with pytest.raises(ValueError, match=r"max_tokens=65 exceeds the context of model.path, 64 tokens"):
        run(config, resume=False)
    assert not Path(config.run_dir).exists()


def test_bad_rows_are_skipped_and_counted_where_asked(configure: Any, tmp_path: Path) -> None:
    data = {"train": write_rows(tmp_path / "bad.jsonl", [*ROWS, {"prompt": "no answer"}]), "on_bad_row": "skip"}
    config = configure(data=data)
    run(config, resume=False)
    summary = RunFiles(config.run_dir).read_summary()
    assert (summary["skipped_rows"], summary["eval_loss"]) == (1, None)


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_by_the_libraries(configure: Any, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.logging.disable_progress_bar()  # Those of loading and saving, which are not the trainer's.
    run(configure(), resume=False)
    transformers.logging.enable_progress_bar()
    printed, complaints = capfd.readouterr()
    *steps, last = printed.splitlines()
    assert all(line.startswith("sft ") for line in steps)
    assert last.startswith("model ")
    assert complaints == ""


def test_the_adapter_of_the_best_step_stays_beside_the_last(configure: Any) -> None:
    best = {"metric": "progress/epoch", "direction": "lower"}
    config = configure(tuning=LORA, epochs=1, checkpoint={"every_steps": 9, "keep_best": best})
    run(config, resume=False)
    folder, file = Path(config.run_dir), "adapter_model.safetensors"
    saved = load_file(folder / "checkpoints" / "step-00000001" / "state.safetensors")
    kept, last = load_file(folder / "best" / file), load_file(folder / "model" / file)
    assert all(torch.equal(kept[name], saved[f"policy.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)


# --- several ranks ----------------------------------------------------------------------------------------------------


def example(learned: int) -> Example:
    return Example(np.arange(learned + 2, dtype=np.int32), np.array([False, False] + [True] * learned))


def test_ranks_take_turns_along_a_step_and_weigh_what_they_learned() -> None:
    examples = [example(learned) for learned in (1, 2, 4, 3, 6)]
    order = [0, 1, 3, 2, 4]  # One step of four, and one with an example for the first rank only.

    assert share_of_steps(examples, order, Ranks(0, 2), examples_per_step=4) == ([0, 3, 4], [0.4, 1.0])
    assert share_of_steps(examples, order, Ranks(1, 2), examples_per_step=4) == ([1, 2, 4], [0.6, 0.0])


def test_micro_batches_must_fill_the_step_of_each_rank(configure: Any) -> None:
    message = r"micro_batch_examples=4 must divide examples_per_step=4 / ranks.workers=2"
    with pytest.raises(ValueError, match=message):
        configure(ranks={"workers": 2})


@pytest.mark.slow
@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_two_ranks_train_the_model_of_one_and_resume_it(configure: Any, tuning: dict[str, Any]) -> None:
    # With a small epsilon Adam turns a gradient that is nothing but rounding into a whole step.
    changes = {"tuning": tuning, "optimizer": {"learning_rate": 1e-2, "epsilon": 1.0}, "micro_batch_examples": 2}
    one, two = configure("one", **changes), configure("two", **changes)
    run(one, resume=False)
    ranks = RankProcesses(2)
    try:
        ranks.run(rank_tasks.finetune, two.model_dump(mode="json"), resume=False)
        for key in ("loss/train", "eval/loss", "policy/grad_norm", "progress/tokens"):
            assert column(two, key) == pytest.approx(column(one, key), rel=1e-4)
        trained, expected = (trained_weights(config) for config in (two, one))
        assert all(torch.allclose(trained[name], expected[name], atol=1e-5) for name in expected)
        shutil.rmtree(Path(two.run_dir) / "checkpoints" / "step-00000006")
        ranks.run(rank_tasks.finetune, two.model_dump(mode="json"), resume=True)
        resumed = trained_weights(two)
        assert all(torch.equal(resumed[name], trained[name]) for name in trained)
    finally:
        ranks.close()
