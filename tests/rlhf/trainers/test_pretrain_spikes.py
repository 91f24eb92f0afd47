"""Pretraining on poisoned text, end to end: the spike is found, the run taken back, the data skipped, and all is told.

Also what fills a step: packed documents and the ramp of the batch.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.causal import CausalPolicy
from rlhf.config import PretrainConfig
from rlhf.loss_spikes import RepeatedSpikesError
from rlhf.runtime.json_lines import read_objects
from rlhf.runtime.run_folder import RunFiles
from rlhf.runtime.sinks.jsonl import JsonlSink
from rlhf.runtime.training_state import load_latest_checkpoint
from rlhf.text_stream import encode_documents
from rlhf.trainers import pretrain
from rlhf.trainers.pretrain import Pretrainer, run, sequences_due
from rlhf.trainers.pretrain_inputs import read_inputs
from tests.interrupted_runs import interrupt_once
from tests.rlhf.trainers.test_pretrain import TEXTS, column, configure, same_weights, write_rows

STEPS = 30
SPIKES = {"window_steps": 8, "z_threshold": 8.0}


def poisoned(tmp_path: Path, name: str, /, **changes: Any) -> PretrainConfig:
    """Five passes over simple sentences, and one document of noise that fills two steps somewhere in the first pass."""
    noise = random.Random(1)
    garbage = "".join(chr(noise.randrange(33, 126)) for _ in range(120))
    clean = [f"{text} {text}" for text in TEXTS * 5]
    data = {"train": write_rows(tmp_path / "poisoned.jsonl", [*clean, garbage]),
            "eval": write_rows(tmp_path / "held-out.jsonl", TEXTS[::7])}  # fmt: skip
    optimizer = {"learning_rate": 1e-2, "schedule": "constant"}
    settings = {"data": data, "steps": STEPS, "eval_every_steps": STEPS, "optimizer": optimizer, "seed": 15,
                "checkpoint": {"every_steps": 6}, "spikes": SPIKES}  # fmt: skip
    return configure(tmp_path, name, **settings | changes)


def spike_step(run_dir: str) -> int:
    losses = column(run_dir, "loss/train")
    return max(range(5, STEPS), key=lambda step: losses[step] - losses[step - 1]) + 1


def test_a_poisonous_batch_is_skipped_counted_and_told_and_the_model_is_better_for_it(tmp_path: Path) -> None:
    plain, guarded = poisoned(tmp_path, "plain", spikes=None), poisoned(tmp_path, "guarded")
    run(plain, resume=False)
    run(guarded, resume=False)
    files = RunFiles(guarded.run_dir)
    summary: dict[str, Any] = {**files.read_summary()}
    before, after = column(plain.run_dir, "loss/train"), column(guarded.run_dir, "loss/train")
    assert max(before[10:]) > 1.5 * max(after[10:]), "the noise was there, and none of it was learned"
    assert summary["rollbacks"] >= 1
    assert summary["skipped_sequences"] % guarded.sequences_per_step == 0
    assert column(guarded.run_dir, "progress/rollbacks")[-1] == summary["rollbacks"]
    assert [row["step"] for row in files.read_metrics()] == list(range(1, STEPS + 1))
    alerts = [row for row in read_objects(files.alerts_path) if row["rule"] == "loss_rolled_back"]
    assert len(alerts) == summary["rollbacks"]
    step = spike_step(plain.run_dir)
    back = (step - 1) // 6 * 6
    assert str(alerts[0]["finding"]).startswith(f"step {step}: a loss of")
    assert f"back to step {back}, {(step - back) * 4} sequences skipped" in str(alerts[0]["finding"])
    held_out = [float(str(RunFiles(config.run_dir).read_summary()["eval_loss"])) for config in (plain, guarded)]
    assert held_out[1] < held_out[0]


def test_a_run_that_is_killed_after_a_rollback_resumes_to_the_bits_of_a_straight_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = poisoned(tmp_path, "straight"), poisoned(tmp_path, "broken")
    run(straight, resume=False)
    alerts = read_objects(RunFiles(straight.run_dir).alerts_path)
    back = next(int(str(alert["step"])) for alert in alerts if alert["rule"] == "loss_rolled_back")
    calls: list[int] = []
    log = JsonlSink.log

    def interrupt_the_second_time(self: JsonlSink, at: int, metrics: Any) -> None:
        # The step behind the checkpoint comes once before the rollback, and once after it.
        calls.append(at)
        if calls.count(back + 1) == 2:
            monkeypatch.undo()
            raise KeyboardInterrupt
        log(self, at, metrics)

    monkeypatch.setattr(JsonlSink, "log", interrupt_the_second_time)
    with pytest.raises(KeyboardInterrupt):
        run(broken, resume=False)
    run(broken, resume=True)
    assert same_weights(straight.run_dir, broken.run_dir)
    for key in ("loss/train", "progress/rollbacks", "progress/skipped_sequences", "progress/epoch", "progress/tokens"):
        assert column(broken.run_dir, key) == column(straight.run_dir, key)
    again = read_objects(RunFiles(broken.run_dir).alerts_path)
    assert [alert["finding"] for alert in again] == [alert["finding"] for alert in alerts]


def test_a_run_that_is_killed_before_the_spike_comes_to_the_same_rollback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = poisoned(tmp_path, "straight"), poisoned(tmp_path, "broken")
    run(straight, resume=False)
    interrupt_once(monkeypatch, at_step=7)
    with pytest.raises(KeyboardInterrupt):
        run(broken, resume=False)
    run(broken, resume=True)
    assert same_weights(straight.run_dir, broken.run_dir)


def test_a_gradient_that_explodes_is_rolled_back_to_the_start_where_there_is_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nll = Pretrainer._nll_sum
    calls: list[int] = []

    def explode_once(self: Pretrainer, rows: Any) -> torch.Tensor:
        calls.append(1)
        return nll(self, rows) * (torch.inf if len(calls) == 3 else 1.0)

    monkeypatch.setattr(Pretrainer, "_nll_sum", explode_once)
    config = configure(tmp_path, steps=4, checkpoint={"every_steps": 10}, spikes={"skip_steps": 1})
    run(config, resume=False)
    summary: dict[str, Any] = {**RunFiles(config.run_dir).read_summary()}
    # Two good steps and the bad one are taken back, one more is skipped.
    assert (summary["rollbacks"], summary["skipped_sequences"]) == (1, 16)
    assert summary["tokens"] == 4 * 4 * 16
    assert "loss is inf (first tensor that is not finite: gradient of" in str(
        read_objects(RunFiles(config.run_dir).alerts_path)[0]["finding"]
    )
    # Four steps skipped and four taken: the text stands where eight steps leave it.
    plain = configure(tmp_path, "plain", steps=8, seed=config.seed)
    run(plain, resume=False)
    assert column(config.run_dir, "progress/epoch")[-1] == column(plain.run_dir, "progress/epoch")[-1]


def test_spikes_without_end_stop_the_run_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pretrainer, "_nll_sum", lambda _self, _rows: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(RepeatedSpikesError, match=r"spikes\.max_rollbacks=3"):
        run(configure(tmp_path, spikes={"max_rollbacks": 3}), resume=False)


def test_the_best_model_is_never_that_of_a_step_that_was_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = poisoned(
        tmp_path,
        "best",
        spikes=SPIKES | {"rewind_steps": 3},
        checkpoint={"every_steps": 6, "keep_last": 6, "keep_best": {"metric": "loss/train", "direction": "lower"}},
    )
    roll_back, seen = Pretrainer._roll_back, []

    def watch(self: Pretrainer, *arguments: Any) -> None:
        before = self._checkpoints.best_step
        roll_back(self, *arguments)
        best = self._checkpoints.best_step
        assert before is not None
        assert best is not None
        kept = load_file(Path(config.run_dir) / "best" / "model.safetensors")
        state = load_latest_checkpoint(RunFiles(config.run_dir).checkpoints_path, not_after=best)
        assert state is not None
        own = self._policy.weights()
        assert state.step == best
        assert all(torch.equal(kept[name], state.tensors_of("model")[name]) for name in kept)
        # And the run goes on from the checkpoint that it went back to.
        back = load_latest_checkpoint(RunFiles(config.run_dir).checkpoints_path, not_after=self._steps_done)
        assert back is not None
        assert all(torch.equal(own[name], tensor) for name, tensor in back.tensors_of("model").items())
        seen.append((before, best, self._steps_done))

    monkeypatch.setattr(Pretrainer, "_roll_back", watch)
    run(config, resume=False)
    assert any(before > done >= best for before, best, done in seen)


# --- what fills a step ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_loss_of_packed_documents_is_that_of_separate_ones(tmp_path: Path, compute_dtype: str) -> None:
    config = configure(tmp_path, packing="packed", steps=1, sequence_tokens=32, compute_dtype=compute_dtype)
    inputs = read_inputs(config, resume=False)
    model = AutoModelForCausalLM.from_config(inputs.backbone.model.config, dtype=torch.float32).eval()
    model.load_state_dict(inputs.backbone.model.state_dict())
    trainer = Pretrainer(config, inputs, None)
    rows = trainer._stream.next(config.sequences_per_step)
    trainer._stream.load_state_dict({"epoch": 0, "position": 0, "corpus_tokens": trainer._stream._corpus_tokens})
    assert len(rows) > config.sequences_per_step, "a sequence holds several documents"
    total = count = 0.0
    for row in rows:
        ids = torch.tensor(row.astype("int64"))[None]
        total += model(input_ids=ids, labels=ids).loss.item() * (len(row) - 1)
        count += len(row) - 1
    tolerance = 1e-5 if compute_dtype == "float32" else 0.02
    assert trainer.step()["loss/train"] == pytest.approx(total / count, abs=tolerance)


def test_packed_training_computes_no_padding_and_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[tuple[int, int]] = []
    text_nll = CausalPolicy.text_nll

    def noted(self: CausalPolicy, batch: Any) -> torch.Tensor:
        widths.append((int(batch.attention_mask.sum()), int(self.backbone.packs_rows)))
        return text_nll(self, batch)

    monkeypatch.setattr(CausalPolicy, "text_nll", noted)
    config = configure(tmp_path, packing="packed", steps=30, optimizer={"learning_rate": 1e-2},
                       sequence_tokens=32, micro_batch_tokens=64)  # fmt: skip
    run(config, resume=False)
    assert all(packs for _, packs in widths)
    assert max(tokens for tokens, _ in widths) <= 64
    losses = column(config.run_dir, "loss/train")
    assert losses[-1] < 0.7 * losses[0]
    tokenizer = AutoTokenizer.from_pretrained(Path(config.run_dir) / "model")
    assert len(encode_documents(TEXTS, tokenizer)) == 36


def test_the_batch_grows_with_the_tokens_seen(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=8, sequences_per_step=9, sequences_ramp={"first": 1, "tokens": 160})
    # Sequences of 16 tokens: 1 + 8 * seen / 160, rounded; seen 0, 16, 48 (1 + 2.4), 96, 192.
    assert [sequences_due(config, tokens) for tokens in (0, 16, 48, 96, 159, 160, 999)] == [1, 2, 3, 6, 9, 9, 9]
    run(config, resume=False)
    assert column(config.run_dir, "progress/sequences_per_step") == [1, 2, 3, 6, 9, 9, 9, 9]
    assert column(config.run_dir, "progress/tokens")[:4] == [16, 48, 96, 192]


def test_a_ramp_that_falls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"sequences_ramp\.first=5 is more than sequences_per_step=4"):
        configure(tmp_path, sequences_ramp={"first": 5, "tokens": 100})


def test_a_ramped_run_resumes_to_the_bits_of_a_straight_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {"sequences_ramp": {"first": 1, "tokens": 200}, "packing": "packed"}
    run(configure(tmp_path, "straight", **changes), resume=False)
    config = configure(tmp_path, "broken", **changes)
    interrupt_once(monkeypatch, at_step=6)
    with pytest.raises(KeyboardInterrupt):
        run(config, resume=False)
    run(config, resume=True)
    assert same_weights(str(tmp_path / "straight"), config.run_dir)
    assert pretrain.BEST_MODEL not in [path.name for path in Path(config.run_dir).iterdir()]
