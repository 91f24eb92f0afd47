"""Pretraining end to end on a corpus of a few sentences: what it leaves behind, determinism, resuming, refusals."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.causal import CausalPolicy
from policies.config import ModelConfig
from policies.loading import load_backbone
from rlhf.config import PretrainConfig
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.training_state import load_latest_checkpoint
from rlhf.text_stream import perplexity
from rlhf.trainers.pretrain import run
from tests import rank_tasks
from tests.interrupted_runs import interrupt_once
from tests.rank_processes import RankProcesses

TEXTS = [f"the {animal} took a {thing} to the {place}." for animal in ("cat", "dog", "owl", "fox")
         for thing in ("ball", "hat", "map") for place in ("hill", "mill", "lake")]  # fmt: skip
HELD_OUT = ["the fox took a ball to the lake.", "the owl took a hat to the mill."]


def write_rows(path: Path, texts: list[Any]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def configure(tmp_path: Path, name: str = "run", **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {
        "run_dir": str(tmp_path / name),
        "model": {
            "architecture": {"hidden_size": 32, "layers": 1, "heads": 2, "context_tokens": 32},
            "vocabulary_size": 290,
        },
        "data": {
            "train": write_rows(tmp_path / "train.jsonl", TEXTS),
            "eval": write_rows(tmp_path / "eval.jsonl", HELD_OUT),
        },
        "sequence_tokens": 16,
        "sequences_per_step": 4,
        "steps": 6,
        "eval_every_steps": 3,
        "compute_dtype": "float32",
        "checkpoint": {"every_steps": 2},
        "tracking": {"wandb": "off"},
    }
    return PretrainConfig.model_validate(settings | changes)


def weights(run_dir: str) -> dict[str, torch.Tensor]:
    return load_file(Path(run_dir) / "model" / "model.safetensors")


def same_weights(first: str, second: str) -> bool:
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def column(run_dir: str, key: str) -> list[float]:
    return [row[key] for row in RunFiles(run_dir).read_metrics() if key in row]  # pyright: ignore[reportReturnType]


def test_a_run_leaves_model_metrics_summary_and_report(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=40, eval_every_steps=20, optimizer={"learning_rate": 1e-2, "schedule": "cosine"})
    run(config, resume=False)
    files = RunFiles(config.run_dir)
    losses = column(config.run_dir, "loss/train")
    assert losses[0] == pytest.approx(math.log(290), rel=0.1)
    assert losses[-1] < 0.6 * losses[0]
    assert [row["step"] for row in files.read_metrics()] == list(range(1, 41))
    assert [row["step"] for row in files.read_metrics() if "eval/perplexity" in row] == [20, 40]
    assert files.report_path.exists()
    assert files.read_summary()["tokens"] == 40 * 4 * 16


def test_the_final_folder_is_plain_transformers_and_has_the_reported_perplexity(tmp_path: Path) -> None:
    config = configure(tmp_path)
    run(config, resume=False)
    folder = Path(config.run_dir) / "model"
    assert AutoModelForCausalLM.from_pretrained(folder).config.max_position_embeddings == 32
    assert AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"][0] == 1
    policy = CausalPolicy(load_backbone(ModelConfig(path=str(folder))), adapter=None, temperature=1.0)
    summary = RunFiles(config.run_dir).read_summary()
    assert summary["perplexity"] == pytest.approx(perplexity(policy, HELD_OUT), rel=1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(configure(tmp_path, name, seed=seed), resume=False)
    assert same_weights(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not same_weights(str(tmp_path / "a"), str(tmp_path / "c"))


def test_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    for name, budget in (("whole", 10_000), ("parts", 40), ("single", 1)):
        run(configure(tmp_path, name, micro_batch_tokens=budget), resume=False)
    for key in ("loss/train", "policy/grad_norm", "eval/loss"):
        whole = column(str(tmp_path / "whole"), key)
        assert column(str(tmp_path / "parts"), key) == pytest.approx(whole, rel=1e-4)
        assert column(str(tmp_path / "single"), key) == pytest.approx(whole, rel=1e-4)


def test_an_interrupted_run_resumes_to_the_bits_of_a_straight_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(configure(tmp_path, "straight"), resume=False)
    config = configure(tmp_path, "broken")
    interrupt_once(monkeypatch, at_step=6)
    with pytest.raises(KeyboardInterrupt):
        run(config, resume=False)
    run(config, resume=True)
    assert same_weights(str(tmp_path / "straight"), config.run_dir)
    for key in ("loss/train", "eval/loss", "progress/lr", "progress/epoch"):
        assert column(config.run_dir, key) == column(str(tmp_path / "straight"), key)


def test_a_run_interrupted_before_its_first_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path)
    interrupt_once(monkeypatch, at_step=2)
    with pytest.raises(KeyboardInterrupt):
        run(config, resume=False)
    run(config, resume=True)
    assert len(column(config.run_dir, "loss/train")) == 6


def test_resuming_a_finished_run_keeps_its_numbers(tmp_path: Path) -> None:
    config = configure(tmp_path)
    run(config, resume=False)
    before = RunFiles(config.run_dir).read_summary()
    run(config, resume=True)
    assert RunFiles(config.run_dir).read_summary() == before


def test_a_non_finite_loss_stops_with_the_state_before_it(tmp_path: Path) -> None:
    # The first step already ruins the weights (up to 1e30), the second sees it.
    config = configure(tmp_path, optimizer={"learning_rate": 1e30, "schedule": "constant"})
    for resume in (False, True):
        with pytest.raises(NonFiniteLossError, match="training stopped"):
            run(config, resume=resume)
    state = load_latest_checkpoint(RunFiles(config.run_dir).checkpoints_path)
    assert state is not None
    assert state.step == len(column(config.run_dir, "loss/train")) > 0
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())
    assert not RunFiles(config.run_dir).summary_path.exists()


def test_a_pretrained_folder_is_continued_with_its_own_tokenizer(tmp_path: Path) -> None:
    first = configure(tmp_path, "first", steps=40, optimizer={"learning_rate": 1e-2})
    run(first, resume=False)
    second = configure(tmp_path, "second", model={"path": str(Path(first.run_dir) / "model")})
    run(second, resume=False)
    assert column(second.run_dir, "loss/train")[0] == pytest.approx(column(first.run_dir, "loss/train")[-1], rel=0.2)


def test_the_kind_of_tokenizer_is_one_line_and_none_for_a_model_that_has_one(tmp_path: Path) -> None:
    architecture = {"hidden_size": 32, "layers": 1, "heads": 2, "context_tokens": 32}
    model = {"architecture": architecture, "vocabulary_size": 530, "tokenizer": "wordpiece"}
    config = configure(tmp_path, model=model, steps=1)
    run(config, resume=False)
    tokenizer = AutoTokenizer.from_pretrained(Path(config.run_dir) / "model")
    assert tokenizer.decode(tokenizer("the cat's Größe")["input_ids"], skip_special_tokens=True) == "the cat's Größe"
    assert type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"
    again = configure(tmp_path, "again", model={"architecture": architecture, "tokenizer": str(tmp_path / "run/model")})
    run(again, resume=False)
    assert column(again.run_dir, "loss/train")[0] == column(config.run_dir, "loss/train")[0]


def test_a_resumed_run_takes_the_tokenizer_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library trains unigram in an order of its own: a second time gives another tokenizer.
    model = {"architecture": {"hidden_size": 32, "layers": 1, "heads": 2, "context_tokens": 32}, "vocabulary_size": 280,
             "tokenizer": "unigram"}  # fmt: skip
    config = configure(tmp_path, model=model)
    interrupt_once(monkeypatch, at_step=6)
    with pytest.raises(KeyboardInterrupt):
        run(config, resume=False)
    before = AutoTokenizer.from_pretrained(Path(config.run_dir) / "tokenizer").get_vocab()
    run(config, resume=True)
    assert AutoTokenizer.from_pretrained(Path(config.run_dir) / "model").get_vocab() == before


@pytest.mark.parametrize(("model", "message"), [
    ({"path": "a", "tokenizer": "bpe"}, "the model of path has a tokenizer"),
    ({"path": "a", "architecture": {}}, "either path .* or architecture"),
    ({"architecture": {}}, "a new tokenizer .* needs vocabulary_size"),
    ({"architecture": {}, "tokenizer": "some/folder", "vocabulary_size": 300}, "the folder of one that exists"),
])  # fmt: skip
def test_a_model_with_two_tokenizers_or_none_is_refused(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure(tmp_path, model=model)


def test_ranks_that_would_train_unlike_tokenizers_are_refused(tmp_path: Path) -> None:
    model = {"architecture": {}, "tokenizer": "unigram", "vocabulary_size": 300}
    with pytest.raises(ValueError, match=r"every rank would train a slightly different one; train it with"):
        configure(tmp_path, model=model, ranks={"workers": 2})


def test_bfloat16_products_leave_float32_weights_and_nearly_the_same_loss(tmp_path: Path) -> None:
    for name in ("float32", "bfloat16"):
        run(configure(tmp_path, name, compute_dtype=name), resume=False)
    exact, rounded = (column(str(tmp_path / name), "loss/train") for name in ("float32", "bfloat16"))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)
    assert {tensor.dtype for tensor in weights(str(tmp_path / "bfloat16")).values()} == {torch.float32}


def test_a_sequence_longer_than_the_context_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = configure(tmp_path, sequence_tokens=33)
    with pytest.raises(ValueError, match=r"sequence_tokens=33 exceeds the model's context of 32 tokens"):
        run(config, resume=False)
    assert not Path(config.run_dir).exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path: Path) -> None:
    config = configure(tmp_path)
    run(config, resume=False)
    before = (Path(config.run_dir) / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        run(config, resume=False)
    assert (Path(config.run_dir) / "metrics.jsonl").read_bytes() == before


def test_bad_rows_stop_the_run_or_are_skipped_and_counted(tmp_path: Path) -> None:
    data = {"train": write_rows(tmp_path / "bad.jsonl", [*TEXTS, None])}
    with pytest.raises(ValueError, match=r"bad.jsonl, row 36: text is None"):
        run(configure(tmp_path, data=data), resume=False)
    config = configure(tmp_path, data={**data, "on_bad_row": "skip"})
    run(config, resume=False)
    summary = RunFiles(config.run_dir).read_summary()
    assert (summary["skipped_rows"], summary["documents"], summary["perplexity"]) == (1, 36, None)


def test_the_model_of_the_best_step_stays_beside_the_last(tmp_path: Path) -> None:
    best = {"metric": "progress/tokens", "direction": "lower"}
    config = configure(tmp_path, steps=3, checkpoint={"every_steps": 2, "keep_last": 1, "keep_best": best})
    run(config, resume=False)
    files = RunFiles(config.run_dir)
    assert sorted(path.name for path in files.checkpoints_path.iterdir()) == ["step-00000001", "step-00000003"]
    saved = load_file(files.checkpoints_path / "step-00000001" / "state.safetensors")
    kept = load_file(files.path / "best" / "model.safetensors")
    assert all(torch.equal(kept[name], saved[f"model.{name}"]) for name in kept)
    assert not torch.equal(kept["model.norm.weight"], weights(config.run_dir)["model.norm.weight"])
    assert files.read_summary()["best"] == {"step": 1, "progress/tokens": 64.0}


# --- several ranks ----------------------------------------------------------------------------------------------------

SMOOTH = {"learning_rate": 1e-2, "epsilon": 1.0}
"""With a small epsilon Adam turns a gradient that is nothing but rounding into a whole step."""


def rows_of(run_dir: str) -> list[dict[str, Any]]:
    """The metrics that do not depend on the clock or the machine."""
    return [
        {key: value for key, value in row.items() if not key.startswith(("time/", "perf/"))}
        for row in RunFiles(run_dir).read_metrics()
    ]


@pytest.mark.slow
def test_two_ranks_train_the_model_of_one_and_resume_it(tmp_path: Path) -> None:
    # Five documents of unlike lengths a step, two of them a pass: the ranks need unlike many passes.
    changes: dict[str, Any] = {
        "packing": "documents", "sequences_per_step": 5, "micro_batch_tokens": 32, "optimizer": SMOOTH
    }  # fmt: skip
    one, two = (configure(tmp_path, name, **changes) for name in ("one", "two"))
    run(one, resume=False)
    ranks = RankProcesses(2)
    try:
        ranks.run(rank_tasks.pretrain, two.model_dump(mode="json"), resume=False)
        assert rows_of(two.run_dir) == [pytest.approx(row, rel=1e-5, abs=1e-5) for row in rows_of(one.run_dir)]
        trained, expected = weights(two.run_dir), weights(one.run_dir)
        assert all(torch.allclose(trained[name], expected[name], atol=1e-5) for name in expected)
        shutil.rmtree(Path(two.run_dir) / "checkpoints" / "step-00000006")
        ranks.run(rank_tasks.pretrain, two.model_dump(mode="json"), resume=True)
        resumed = weights(two.run_dir)
        assert all(torch.equal(resumed[name], trained[name]) for name in trained)
    finally:
        ranks.close()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
def test_ranks_in_actors_show_their_lines_and_refuse_a_folder_that_holds_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(tmp_path, ranks={"workers": 2, "cpus": 0.5, "timeout_seconds": 120}, optimizer=SMOOTH)
    run(config, resume=False)
    printed = capsys.readouterr().out
    assert [f"pretrain {step}/6" in printed for step in range(1, 7)] == [True] * 6
    with pytest.raises(ValueError, match="run_dir"):
        run(config, resume=False)
