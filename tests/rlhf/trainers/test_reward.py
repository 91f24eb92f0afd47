import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from reward.composite import build_reward
from reward.config import ModelSource
from reward.demonstrations import encode_demonstrations
from reward.interface import RewardRequest
from reward.model import RewardModel
from reward.normalization import Normalizer
from reward.scoring import score_sequences
from rlhf.config import RewardConfig
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.metrics import MetricLogger
from rlhf.runtime.run_folder import RunFiles, RunFolder
from rlhf.trainers.reward import RewardTrainer, run
from rlhf.trainers.reward_inputs import ComparisonOrder, RewardInputs
from tests import rank_tasks
from tests.rank_processes import RankProcesses

TIMES = ("time/step", "time/update", "time/eval", "perf/peak_memory_mib")
WORDS = ("cat", "dog", "girl", "bird", "rain", "tree")


def rankings(count, start=0):
    """The answer that names the red ball is best, the shorter of the two others is second; some tie."""
    rows = []
    for number in range(start, start + count):
        word = WORDS[number % len(WORDS)]
        responses = [f" the {word}", f" the red ball {number}", f" the {word} and the hill"]
        rows.append(
            {
                "prompt": f"{number}:",
                "responses": responses,
                "ranking": [[1], [0], [2]] if number % 3 else [[1], [0, 2]],
            }
        )
    return rows


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path):
    return {
        "train": write_rows(tmp_path / "train.jsonl", rankings(24)),
        "eval": write_rows(tmp_path / "eval.jsonl", rankings(9, start=100)),
        "format": {"kind": "rankings"},
    }


@pytest.fixture
def settings(tmp_path, tiny_llama_folder, data):
    return {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(tiny_llama_folder), "device": "cpu"},
        "data": data,
        "comparisons_per_step": 4,
        "max_tokens": 64,
        "eval_every_steps": 4,
        "optimizer": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 2, "keep_last": 10},
        "tracking": {"wandb": "off"},
    }


def config_of(settings, **changes):
    return RewardConfig.model_validate({**settings, **changes})


LORA = {"kind": "lora", "rank": 2, "alpha": 4}


@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_it_learns_what_people_prefer_and_leaves_a_scaled_model(settings, tmp_path, tuning):
    settings["model"] |= {"tuning": tuning}

    run(config_of(settings, epochs=6, optimizer={"learning_rate": 1e-2}), resume=False)

    files = RunFiles(tmp_path / "run")
    summary: dict[str, Any] = files.read_summary()
    assert summary["accuracy"] >= 0.8
    assert summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"]
    assert summary["baselines"].keys() == {"length", "bag_of_words", "naive_bayes"}
    assert summary["steps"] == 36
    assert summary["loss"] < 0.6
    assert summary["seconds"] > 0
    metrics: list[dict[str, Any]] = files.read_metrics()
    assert [row["step"] for row in metrics] == list(range(1, 37))
    assert [row["step"] for row in metrics if "rm/eval_accuracy" in row] == list(range(4, 37, 4))
    assert metrics[-1]["rm/loss"] < metrics[0]["rm/loss"]
    assert metrics[-1]["progress/epoch"] == 6
    assert "held-out accuracy" in files.report_path.read_text()
    assert_best_ranked_responses_score_zero_on_average(settings, tmp_path / "run" / "model")


def assert_best_ranked_responses_score_zero_on_average(settings, folder):
    rows = [json.loads(line) for line in Path(settings["data"]["eval"]).read_text().splitlines()]
    requests = [RewardRequest(row["prompt"], row["responses"][1]) for row in rows]
    scores = build_reward([ModelSource(path=str(folder))], policy_tokenizer=None)(requests).scores
    assert scores.mean() == pytest.approx(0, abs=1e-3)
    assert scores.std() == pytest.approx(1, abs=1e-3)


def test_the_full_model_loads_with_plain_transformers(settings, tmp_path):
    run(config_of(settings), resume=False)

    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run/model", output_loading_info=True)

    assert model.config.num_labels == 1
    assert not report["missing_keys"]


def test_the_scale_comes_from_data_normalize_where_it_is_given(settings, data, tmp_path):
    rows = [{"prompt": f"{i}:", "completion": f" the {word}"} for i, word in enumerate(WORDS)]
    source = write_rows(tmp_path / "answers.jsonl", rows)

    run(config_of(settings, data=data | {"normalize": source}), resume=False)

    model = RewardModel.from_folder(str(tmp_path / "run/model"))
    scale = Normalizer.load(tmp_path / "run/model")
    sequences, _ = encode_demonstrations(rows, model.tokenizer, max_tokens=64, source="", on_bad_row="error")
    with torch.no_grad():
        scores = scale(score_sequences(model, sequences, token_budget=100).numpy())
    assert scores.mean() == pytest.approx(0, abs=1e-4)
    assert (scale.count, scale.source) == (6, f"data.normalize={source}")


def test_without_held_out_comparisons_there_is_a_model_but_no_accuracy(settings, data, tmp_path):
    answers = write_rows(tmp_path / "answers.jsonl", [{"prompt": "p", "completion": word} for word in WORDS])

    run(config_of(settings, data=data | {"eval": None, "normalize": answers}), resume=False)

    summary = RunFiles(tmp_path / "run").read_summary()
    assert summary["accuracy"] is None
    assert summary["baselines"] == {}
    assert (tmp_path / "run/report.html").is_file()


def gradients(settings, folder, micro_batch_tokens):
    """Metrics of a first step, and the first moments it leaves: a tenth of the gradients."""
    options = {"comparisons_per_step": 12, "compute_dtype": "float32"}
    config = config_of(settings, micro_batch_tokens=micro_batch_tokens, **options)
    inputs = RewardInputs(config)
    run_folder = RunFolder.create(folder / str(micro_batch_tokens), {})
    trainer = RewardTrainer(config, inputs, ComparisonOrder(len(inputs.train), config), run_folder, MetricLogger([]))
    metrics = trainer.step()
    moments = trainer._optimizer.state
    return metrics, {name: moments[parameter]["exp_avg"] for name, parameter in inputs.model.trainable()}


def test_a_step_does_not_depend_on_micro_batches(settings, tmp_path):
    whole_metrics, whole = gradients(settings, tmp_path, 100_000)
    split_metrics, split = gradients(settings, tmp_path, 40)

    assert max(value.abs().max() for value in whole.values()) > 1e-3
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-6)
    assert split_metrics == pytest.approx(whole_metrics, rel=1e-4, abs=1e-6)


def test_every_epoch_is_a_permutation_and_the_last_step_takes_the_rest(settings):
    order = ComparisonOrder(5, config_of(settings, epochs=2.6, comparisons_per_step=3, seed=7))

    taken = [order.indices(step) for step in range(order.steps)]

    assert [len(indices) for indices in taken] == [3, 3, 3, 3, 1]
    flat = [index for indices in taken for index in indices]
    assert sorted(flat[:5]) == sorted(flat[5:10]) == list(range(5))
    assert flat[:5] != flat[5:10]
    assert [order.epochs_after(steps) for steps in (0, 1, 5)] == [0.0, 0.6, 2.6]


def stop_after(run_dir, step):
    """What a kill behind the checkpoint of `step` leaves: later lines of metrics, no later checkpoint, no summary."""
    for folder in (run_dir / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)
    shutil.rmtree(run_dir / "model")
    (run_dir / "summary.json").unlink()


@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA], ids=["full", "lora"])
def test_a_resumed_run_is_bitwise_the_straight_run(settings, tmp_path, tuning):
    settings["model"] |= {"tuning": tuning}
    run(config_of(settings, epochs=1.5), resume=False)
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    stop_after(tmp_path / "killed", step=4)

    run(config_of(settings, epochs=1.5, run_dir=str(tmp_path / "killed")), resume=True)

    straight, resumed = RunFiles(tmp_path / "run"), RunFiles(tmp_path / "killed")
    assert without_times(resumed.read_metrics()) == without_times(straight.read_metrics())
    assert weights_of(resumed.path) == weights_of(straight.path)
    drop = {"seconds"}
    assert {k: v for k, v in resumed.read_summary().items() if k not in drop} == {
        k: v for k, v in straight.read_summary().items() if k not in drop
    }


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def weights_of(run_dir):
    (file,) = (run_dir / "model").glob("*.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def test_a_run_killed_after_its_last_step_is_finished_by_resuming(settings, tmp_path):
    run(config_of(settings), resume=False)
    expected = RunFiles(tmp_path / "run").read_summary()
    stop_after(tmp_path / "run", step=6)

    run(config_of(settings), resume=True)

    summary = RunFiles(tmp_path / "run").read_summary()
    assert (summary["accuracy"], summary["normalizer"]) == (expected["accuracy"], expected["normalizer"])


def test_a_loss_that_is_not_finite_stops_the_run_with_a_saved_state_and_the_reason(settings, tmp_path):
    with pytest.raises(NonFiniteLossError, match=r"is (nan|inf) at step 1") as error:
        run(config_of(settings, optimizer={"learning_rate": 1e30}, checkpoint={"every_steps": 100}), resume=False)

    assert "optimizer.learning_rate" in str(error.value)
    assert [folder.name for folder in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001"]
    assert not (tmp_path / "run/summary.json").exists()
    assert not (tmp_path / "run/model").exists()


def test_bad_rows_are_skipped_and_counted_where_that_is_asked_for(settings, data, tmp_path):
    rows = [*rankings(6), {"prompt": "p", "responses": ["a", "b " * 80], "ranking": [[0], [1]]}, {"prompt": "p"}]
    source = write_rows(tmp_path / "bad.jsonl", rows)

    with pytest.raises(ValueError, match=r"data\.train=.*bad\.jsonl, row 7: field 'responses' is missing"):
        run(config_of(settings, data=data | {"train": source}), resume=False)
    assert not (tmp_path / "run").exists()

    run(config_of(settings, data=data | {"train": source, "on_bad_row": "skip"}), resume=False)
    summary = RunFiles(tmp_path / "run").read_summary()
    assert (summary["skipped_rows"], summary["train_comparisons"]) == (2, 6)


def test_a_sequence_beyond_the_models_context_is_a_bad_row_whatever_max_tokens_says(settings, data, tmp_path):
    row = {"prompt": "p", "responses": ["a", "the cat " * 60], "ranking": [[0], [1]]}
    source = write_rows(tmp_path / "long.jsonl", [row])

    with pytest.raises(ValueError, match="at most 64 are allowed"):
        run(config_of(settings, data=data | {"train": source}, max_tokens=10_000), resume=False)


def test_scores_need_something_to_be_normalised_on(settings, data):
    with pytest.raises(ValueError, match=r"data\.eval and data\.normalize are both null"):
        run(config_of(settings, data=data | {"eval": None}), resume=False)


def test_a_missing_file_is_named_before_anything_is_written(settings, data, tmp_path):
    with pytest.raises(ValueError, match=r"data\.eval=.*no such file"):
        run(config_of(settings, data=data | {"eval": str(tmp_path / "none.jsonl")}), resume=False)

    assert not (tmp_path / "run").exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(settings, tmp_path):
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        run(config_of(settings, run_dir=str(tmp_path / name), seed=seed, epochs=0.5), resume=False)

    first, again, other = (weights_of(tmp_path / name) for name in ("first", "again", "other"))
    assert first == again
    assert first != other


def test_examples_in_the_report_are_escaped(settings, data, tmp_path):
    rows = [row | {"prompt": "<script>alert(1)</script>"} for row in rankings(4)]

    run(config_of(settings, data=data | {"eval": write_rows(tmp_path / "html.jsonl", rows)}), resume=False)

    page = (tmp_path / "run/report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_reward_of_a_run_scores_batches_of_any_size_alike(settings, tmp_path):
    run(config_of(settings), resume=False)
    reward = build_reward([ModelSource(path=str(tmp_path / "run/model"), name="rm")], policy_tokenizer=None)
    requests = [RewardRequest(row["prompt"], response) for row in rankings(3) for response in row["responses"]]

    together = reward(requests).scores
    alone = np.concatenate([reward([request]).scores for request in requests])

    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


# --- several ranks ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tuning", "options"),
    [({"kind": "full"}, {"weights": "lowest_loss", "calibrate": "temperature"}), (LORA, {})],
    ids=["full", "lora"],
)
def test_two_ranks_train_the_model_of_one_and_report_its_numbers(settings, tmp_path, tuning, options):
    # Twenty-one comparisons in fives: the last step has one, and a rank without any.
    settings["data"] |= {"train": write_rows(tmp_path / "few.jsonl", rankings(21))}
    settings["model"] |= {"tuning": tuning}
    # With a small epsilon Adam turns a gradient that is nothing but rounding into a whole step.
    smooth = {"learning_rate": 1e-2, "epsilon": 1.0}
    changes = {"comparisons_per_step": 5, "optimizer": smooth, "micro_batch_tokens": 64, "compute_dtype": "float32"}
    one, two = (config_of(settings, run_dir=str(tmp_path / name), **changes, **options) for name in ("one", "two"))
    run(one, resume=False)
    ranks = RankProcesses(2)
    try:
        ranks.run(rank_tasks.train_reward, two.model_dump(mode="json"), resume=False)
    finally:
        ranks.close()
    files = [RunFiles(config.run_dir) for config in (one, two)]
    expected, actual = (without_times(found.read_metrics()) for found in files)
    assert len(expected) == 5
    assert actual == [pytest.approx(row, rel=1e-4, abs=1e-4) for row in expected]
    for key in ("accuracy", "accuracy_low", "loss", "margin", "steps", "tokens"):
        assert files[1].read_summary()[key] == pytest.approx(files[0].read_summary()[key], rel=1e-3), key
    expected, actual = (load_file(next((found.path / "model").glob("*.safetensors"))) for found in files)
    assert all(torch.allclose(actual[name], expected[name], atol=1e-5) for name in expected)
