"""Direct preference optimisation end to end on a tiny model: its loss by hand, determinism, resuming, refusals."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.tokenization import encode_completion, encode_prompt
from rlhf.config import DpoConfig
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.metric_registry import require_documented
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_state import load_latest_checkpoint
from rlhf.trainers.dpo import run
from rlhf.trainers.dpo_inputs import DpoInputs
from tests.interrupted_runs import column, require_bitwise_resume

Row = dict[str, Any]

# 9 pairs of unlike lengths: the preferred answer names the mat.
ROWS: list[Row] = [
    {
        "prompt": f"where is the {animal}?",
        "chosen": f" the {animal} is on the mat" + " now" * number,
        "rejected": f" the {animal} is {place}",
    }
    for number, animal in enumerate(("cat", "dog", "bird"))
    for place in ("in the tree", "on a hill", "far far away in the rain")
]
HELD_OUT: list[Row] = [
    {"prompt": "where is the girl?", "chosen": " the girl is on the mat", "rejected": " the girl is on a hill"},
    {"prompt": "where is the ball?", "chosen": " in the tree", "rejected": " on the mat"},
]
FULL = {"kind": "full"}
LORA = {"kind": "lora", "rank": 4, "alpha": 8}
BETA = 0.3


def write_rows(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def configure(tmp_path: Path, tiny_llama_folder: Path) -> Any:
    def build(name: str = "run", *, tuning: Row | None = None, **changes: Any) -> DpoConfig:
        settings: Row = {
            "run_dir": str(tmp_path / name),
            "model": {"path": str(tiny_llama_folder), "tuning": tuning or {"kind": "full"}},
            "data": {
                "train": write_rows(tmp_path / "train.jsonl", ROWS),
                "eval": write_rows(tmp_path / "eval.jsonl", HELD_OUT),
            },
            "beta": BETA,
            "epochs": 2,  # 18 pairs: 4 steps of 4 and one of 2
            "pairs_per_step": 4,
            "micro_batch_pairs": 4,
            "max_tokens": 64,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint": {"every_steps": 2},
            "tracking": {"wandb": "off"},
        }
        return DpoConfig.model_validate(settings | changes)

    return build


def sequence_logprob(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """By hand from the library's own logits: token t is predicted at t - 1; only the response counts."""
    start, end = encode_prompt(prompt, tokenizer), encode_completion(response, tokenizer)
    ids = torch.from_numpy(np.concatenate([start, end])).long()
    with torch.no_grad():
        logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(float(logprobs[t - 1, ids[t]]) for t in range(len(start), len(ids)))


def margins(model: Any, reference: Any, folder: Path, rows: list[Row]) -> np.ndarray:
    """beta times the difference of log-ratios, of each pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def reward(row: Row, which: str) -> float:
        now, before = (sequence_logprob(m, tokenizer, row["prompt"], row[which]) for m in (model, reference))
        return BETA * (now - before)

    return np.array([reward(row, "chosen") - reward(row, "rejected") for row in rows])


@pytest.mark.parametrize("tuning", [pytest.param(FULL, marks=pytest.mark.slow), LORA], ids=["full", "lora"])
def test_the_reported_held_out_numbers_are_those_worked_by_hand_from_the_final_folder(
    configure: Any, tiny_llama_folder: Path, tuning: Row
) -> None:
    config = configure(tuning=tuning, optimizer={"learning_rate": 1e-2})
    run(config, resume=False)
    folder = Path(config.run_dir) / "model"
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    if tuning is LORA:
        tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama_folder), str(folder))
    else:
        tuned = AutoModelForCausalLM.from_pretrained(folder)
    gap = margins(tuned, base, tiny_llama_folder, HELD_OUT)
    summary = RunFiles(config.run_dir).read_summary()
    assert np.abs(gap).max() > 0.1
    assert summary["eval_margin"] == pytest.approx(gap.mean(), rel=1e-3)
    assert summary["eval_loss"] == pytest.approx(np.log1p(np.exp(-gap)).mean(), rel=1e-3)
    assert summary["eval_accuracy"] == (gap > 0).mean()


def test_training_starts_at_log_2_and_its_loss_is_the_one_worked_by_hand(
    configure: Any, tiny_llama_folder: Path
) -> None:
    # The model after one step, and the pairs of the second: the loss that the second step must report.
    config = configure(epochs=1, optimizer={"learning_rate": 3e-3, "schedule": "constant"}, pairs_per_step=8)
    config = config.model_copy(update={"micro_batch_pairs": 4})
    run(config, resume=False)
    losses = column(config, "rm/loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert column(config, "rm/margin")[0] == pytest.approx(0.0, abs=1e-5)
    second = DpoInputs(config).order[8:]
    stepped = configure("one", epochs=8 / 9, optimizer={"learning_rate": 3e-3, "schedule": "constant"})
    stepped = stepped.model_copy(update={"pairs_per_step": 8, "micro_batch_pairs": 8})
    run(stepped, resume=False)
    assert RunFiles(stepped.run_dir).read_summary()["steps"] == 1
    tuned = AutoModelForCausalLM.from_pretrained(Path(stepped.run_dir) / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    gap = margins(tuned, base, tiny_llama_folder, [ROWS[index] for index in second])
    assert losses[1] == pytest.approx(np.log1p(np.exp(-gap)).mean(), rel=1e-3)
    assert abs(losses[1] - math.log(2)) > 0.01


def test_micro_batches_change_nothing_but_rounding_in_a_smaller_last_step_neither(configure: Any) -> None:
    # 11 pairs in steps of 4: the last has 3, in micro-batches of 3, of 2 and 1, and of 1 each.
    configs = [configure(f"by-{size}", epochs=11 / 9, micro_batch_pairs=size) for size in (4, 2, 1)]
    for config in configs:
        run(config, resume=False)
    whole, *others = configs
    for config in others:
        for key in ("rm/loss", "policy/grad_norm", "rm/eval_loss"):
            assert column(config, key) == pytest.approx(column(whole, key), rel=1e-3)


def test_a_run_learns_and_leaves_model_metrics_summary_and_report(configure: Any) -> None:
    config = configure(epochs=8, optimizer={"learning_rate": 3e-3}, eval_every_steps=10)
    run(config, resume=False)
    files = RunFiles(config.run_dir)
    assert column(config, "rm/loss")[-1] < 0.3 * column(config, "rm/loss")[0]
    assert column(config, "rm/accuracy")[-1] == 1.0
    assert column(config, "rm/chosen_mean")[-1] > column(config, "rm/rejected_mean")[-1]
    assert [row["step"] for row in files.read_metrics() if "rm/eval_accuracy" in row] == [10, 18]
    assert column(config, "progress/epoch")[-1] == 8
    assert files.report_path.exists()
    assert files.read_summary()["pairs"] == 72
    for row in files.read_metrics():
        require_documented(row.keys() - {"step"})


@pytest.mark.parametrize("tuning", [FULL, pytest.param(LORA, marks=pytest.mark.slow)], ids=["full", "lora"])
def test_an_interrupted_run_resumes_to_the_bits_of_a_straight_one(
    configure: Any, monkeypatch: pytest.MonkeyPatch, tuning: Row
) -> None:
    straight, broken = configure("straight", tuning=tuning), configure("broken", tuning=tuning)
    keys = ("rm/loss", "rm/margin", "rm/eval_loss", "progress/lr", "progress/tokens")
    require_bitwise_resume(run, straight, broken, keys, monkeypatch, at_step=4)


@pytest.mark.slow
def test_an_adapter_is_trained_on_and_its_start_is_the_reference(configure: Any) -> None:
    first = configure("first", tuning=LORA, optimizer={"learning_rate": 1e-2})
    run(first, resume=False)
    second = configure("second", model={"path": str(Path(first.run_dir) / "model"), "tuning": LORA})
    run(second, resume=False)
    assert column(second, "rm/loss")[0] == pytest.approx(math.log(2), abs=1e-4)
    assert column(second, "rm/margin")[-1] > 0


def test_a_ranking_gives_each_of_its_pairs(configure: Any, tmp_path: Path) -> None:
    ranking = {"prompt": "where?", "responses": [" on a hill", " on the mat", " in a tree"], "ranking": [[1], [0, 2]]}
    data = {"train": write_rows(tmp_path / "rankings.jsonl", [ranking]), "format": {"kind": "rankings"}}
    inputs = DpoInputs(configure(data=data))
    decode = inputs.backbone.tokenizer.decode
    answers = [tuple(decode(ids, skip_special_tokens=True) for ids in (p.chosen, p.rejected)) for p in inputs.pairs]
    assert answers == [(" on the mat", " on a hill"), (" on the mat", " in a tree")]
    assert inputs.pairs[0].chosen[-1] == inputs.backbone.tokenizer.eos_token_id


def test_lora_leaves_the_base_alone(configure: Any, tiny_llama_folder: Path) -> None:
    before = (tiny_llama_folder / "model.safetensors").read_bytes()
    config = configure(tuning=LORA)
    run(config, resume=False)
    folder = Path(config.run_dir) / "model"
    assert (folder / "adapter_config.json").exists()
    assert not (folder / "model.safetensors").exists()
    assert (tiny_llama_folder / "model.safetensors").read_bytes() == before


def test_a_non_finite_loss_stops_with_the_state_before_it(configure: Any) -> None:
    config = configure(optimizer={"learning_rate": 1e30, "schedule": "constant"})
    with pytest.raises(NonFiniteLossError, match="training stopped"):
        run(config, resume=False)
    state = load_latest_checkpoint(RunFiles(config.run_dir).checkpoints_path)
    assert state is not None
    assert state.step == len(column(config, "rm/loss")) > 0
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())


BAD_ROWS: dict[str, tuple[Row, str]] = {
    "without rejected": ({"prompt": "a", "chosen": "b"}, r"bad\.jsonl, row 9: field 'rejected' is missing"),
    "too long": (
        {"prompt": "the cat " * 40, "chosen": "a", "rejected": "b"},
        r"bad\.jsonl, row 9: prompt plus response has \d+ tokens, at most 64 are allowed",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_or_skipped_and_counted(configure: Any, tmp_path: Path, name: str) -> None:
    row, message = BAD_ROWS[name]
    data = {"train": write_rows(tmp_path / "bad.jsonl", [*ROWS, row])}
    with pytest.raises(ValueError, match=message):
        run(configure(data=data), resume=False)
    config = configure(data=data | {"on_bad_row": "skip"})
    assert not Path(config.run_dir).exists()
    run(config, resume=False)
    summary = RunFiles(config.run_dir).read_summary()
    assert (summary["skipped_rows"], summary["eval_accuracy"]) == (1, None)


def test_what_cannot_be_is_refused_before_anything_is_written(configure: Any) -> None:
    with pytest.raises(ValueError, match=r"micro_batch_pairs=3 must divide pairs_per_step=4"):
        configure(micro_batch_pairs=3)
    config = configure(max_tokens=65)
    with pytest.raises(ValueError, match=r"max_tokens=65 exceeds the context of model.path, 64 tokens"):
        run(config, resume=False)
    assert not Path(config.run_dir).exists()


@pytest.mark.filterwarnings("error")
def test_nothing_is_printed_by_the_libraries(configure: Any, capfd: pytest.CaptureFixture[str]) -> None:
    transformers.logging.disable_progress_bar()  # Those of loading and saving, which are not the trainer's.
    run(configure(), resume=False)
    transformers.logging.enable_progress_bar()
    printed, complaints = capfd.readouterr()
    *steps, last = printed.splitlines()
    assert all(line.startswith("dpo ") for line in steps)
    assert last.startswith("model ")
    assert complaints == ""


def test_the_adapter_of_the_best_step_stays_beside_the_last(configure: Any) -> None:
    best = {"metric": "progress/epoch", "direction": "lower"}
    config = configure(tuning=LORA, epochs=1, checkpoint={"every_steps": 9, "keep_last": 1, "keep_best": best})
    run(config, resume=False)
    folder, file = Path(config.run_dir), "adapter_model.safetensors"
    saved = load_file(folder / "checkpoints" / "step-00000001" / "state.safetensors")
    kept, last = load_file(folder / "best" / file), load_file(folder / "model" / file)
    assert all(torch.equal(kept[name], saved[f"policy.{name}"]) for name in kept)
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    assert RunFiles(folder).read_summary()["best"]["step"] == 1  # pyright: ignore[reportIndexIssue]
