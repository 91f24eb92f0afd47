"""What a run of `rlhf reward` chooses, fits and says at its end."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from reward.composite import build_reward
from reward.config import EnsembleSource, LearnedModelConfig
from reward.interface import RewardRequest
from reward.normalization import Normalizer
from rlhf.config import RewardConfig
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers.reward import run

WORDS = ("cat", "dog", "girl", "bird", "rain", "tree")


def rows(count, start=0):
    """The answer that names the red ball is best."""
    return [
        {
            "prompt": f"{number}:",
            "responses": [f" the {WORDS[number % 6]}", f" the red ball {number}", f" the {WORDS[number % 5]} hill"],
            "ranking": [[1], [0, 2]],
            "source": "forum" if number % 3 else "lab",
        }
        for number in range(start, start + count)
    ]


def write_rows(path, written):
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    return str(path)


@pytest.fixture
def settings(tmp_path, tiny_llama_folder):
    return {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(tiny_llama_folder), "device": "cpu"},
        "data": {
            "train": write_rows(tmp_path / "train.jsonl", rows(24)),
            "eval": write_rows(tmp_path / "eval.jsonl", rows(10, start=100)),
            "format": {"kind": "rankings"},
        },
        "comparisons_per_step": 8,
        "max_tokens": 64,
        "eval_every_steps": 1,
        "optimizer": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 2, "keep_last": 10},
        "tracking": {"wandb": "off"},
    }


def trained(settings, *, resume=False, **changes) -> Any:
    config = RewardConfig.model_validate({**settings, **changes})
    run(config, resume=resume)
    return RunFiles(config.run_dir).read_summary()


def test_the_summary_holds_every_measurement(settings, tmp_path):
    summary = trained(settings)

    assert {"calibration", "slices", "length", "baselines", "distribution", "selection"} <= summary.keys()
    assert [part["name"] for part in summary["slices"]["source"]] == ["forum", "lab"]
    assert summary["selection"]["evaluations"] == 3
    assert summary["distribution"]["normalized"]["std"] != summary["distribution"]["raw"]["std"]
    assert summary["normalizer"]["temperature"] is None
    page = (tmp_path / "run/report.html").read_text()
    for words in ("Calibration", "Length", "Best checkpoint"):
        assert words in page


def test_with_the_last_weights_all_held_out_comparisons_are_reported(settings):
    summary = trained(settings)

    assert (summary["comparisons"], summary["weights"]) == (10, "last step")
    assert summary["selection"]["last"]["accuracy"] == summary["accuracy"]


def test_the_kept_weights_are_those_of_the_best_evaluation_and_are_reported_on_the_other_half(settings, tmp_path):
    # Held-out people prefer the opposite, so the more is learned, the worse.
    opposite = [row | {"ranking": [[0, 2], [1]]} for row in rows(10, start=100)]
    settings["data"]["eval"] = write_rows(tmp_path / "opposite.jsonl", opposite)
    optimizer = {"learning_rate": 3e-3, "schedule": "constant"}
    summary = trained(settings, weights="lowest_loss", epochs=2, optimizer=optimizer, eval_every_steps=2)

    selection = summary["selection"]
    losses: dict[Any, Any] = {
        row["step"]: row["rm/eval_loss"] for row in RunFiles(tmp_path / "run").read_metrics() if "rm/eval_loss" in row
    }
    best: Any = min(losses, key=losses.__getitem__)
    assert best == 2
    assert (selection["kept_step"], summary["weights"]) == (best, f"step {best}")
    assert (selection["chooses"], selection["reports"], summary["comparisons"]) == (5, 5, 5)
    short = trained(settings, weights="last", run_dir=str(tmp_path / "short"), epochs=2 * best / 6, optimizer=optimizer)
    assert short["steps"] == best
    assert saved_weights(tmp_path / "short") == saved_weights(tmp_path / "run")


def saved_weights(run_dir):
    return (run_dir / "model/model.safetensors").read_bytes()


def test_a_resumed_run_keeps_the_weights_of_an_evaluation_before_the_kill(settings, tmp_path):
    ruinous = {"learning_rate": 0.3, "schedule": "constant", "max_grad_norm": 1e9}
    changes = {"weights": "highest_accuracy", "epochs": 2, "optimizer": ruinous, "eval_every_steps": 2}
    straight = trained(settings, **changes)
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "run", killed)
    for folder in ("model", "checkpoints/step-00000006"):
        shutil.rmtree(killed / folder)
    (killed / "summary.json").unlink()

    resumed = trained(settings, **changes, run_dir=str(killed), resume=True)

    assert resumed["selection"] == straight["selection"]
    assert saved_weights(killed) == saved_weights(tmp_path / "run")


def test_the_temperature_is_fitted_on_one_half_saved_with_the_scale_and_judged_on_the_other(settings, tmp_path):
    summary = trained(settings, calibrate="temperature", epochs=4)

    temperature = Normalizer.load(tmp_path / "run/model").temperature
    assert temperature == summary["normalizer"]["temperature"] == summary["calibration_scaled"]["temperature"]
    assert summary["comparisons"] == 5
    assert summary["calibration"]["temperature"] == 1.0


@pytest.mark.parametrize("changes", [{"weights": "lowest_loss"}, {"calibrate": "temperature"}])
def test_choosing_needs_held_out_comparisons(settings, changes):
    with pytest.raises(ValidationError, match=r"needs held-out comparisons.*data\.eval"):
        RewardConfig.model_validate({**settings, **changes, "data": {**settings["data"], "eval": None}})


def test_members_differ_and_their_ensemble_scores_as_it_was_measured(settings, tmp_path):
    summary = trained(settings, ensemble_members=3)

    ensemble, folders = (
        summary["ensemble"],
        [tmp_path / "run/model", *(tmp_path / f"run/member-{n}/model" for n in (1, 2))],
    )
    assert [member["path"] for member in ensemble["members"]] == [str(folder) for folder in folders]
    assert ensemble["disagreement_mean"] > 0
    source = EnsembleSource(members=tuple(LearnedModelConfig(path=str(folder)) for folder in folders), name="rm")
    requests = [RewardRequest(row["prompt"], text) for row in rows(10, start=100) for text in row["responses"]]
    output = build_reward([source], policy_tokenizer=None)(requests)
    assert float(np.mean(output.components["rm/disagreement"])) == pytest.approx(
        ensemble["disagreement_mean"], rel=1e-3
    )
    assert "disagree" in (tmp_path / "run/report.html").read_text()


def test_an_ensemble_that_was_killed_goes_on_where_it_stopped(settings, tmp_path):
    straight = trained(settings, ensemble_members=3)
    first, second = (RunFiles(tmp_path / f"run/member-{number}") for number in (1, 2))
    before = first.summary_path.stat().st_mtime_ns
    for path in (
        second.path / "model",
        second.path / "checkpoints/step-00000003",
        tmp_path / "run/model",
        tmp_path / "run/checkpoints",
    ):
        shutil.rmtree(path)
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "environment.json"):
        (tmp_path / "run" / name).unlink()
    second.summary_path.unlink()

    resumed = trained(settings, ensemble_members=3, resume=True)

    assert resumed["ensemble"] == straight["ensemble"]
    assert first.summary_path.stat().st_mtime_ns == before


def test_a_member_that_is_there_already_is_not_overwritten(settings, tmp_path):
    trained(settings, run_dir=str(tmp_path / "run/member-1"))

    with pytest.raises(ValueError, match=r"member-1' already holds a run"):
        trained(settings, ensemble_members=2)


def test_nothing_to_resume_is_said_of_an_ensemble_too(settings):
    with pytest.raises(ValueError, match="holds no run to resume"):
        trained(settings, ensemble_members=2, resume=True)


@pytest.mark.parametrize(
    "held_out",
    [
        rows(3),
        [
            row
            | {
                "responses": [f"{text} {index}" for index, text in enumerate([*row["responses"], *row["responses"]])],
                "ranking": [[4], [0, 1], [2, 3, 5]],
            }
            for row in rows(4)
        ],
        [{"prompt": "p", "responses": [" cat", " dog"], "ranking": [[0], [1]], "source": "one"}] * 6,
    ],
    ids=["three comparisons", "six ranked with ties", "one source, one prompt, one length"],
)
def test_unusual_held_out_splits_have_a_report_all_the_same(settings, tmp_path, held_out):
    data = settings["data"] | {"eval": write_rows(tmp_path / "odd.jsonl", held_out)}

    summary = trained(settings, data=data)

    assert summary["comparisons"] == len(held_out)
    assert (tmp_path / "run/report.html").is_file()
