"""The health rules over whole PPO runs on tiny models: told everywhere, once, and the same after a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PpoConfig
from rlhf.optimization import NonFiniteLossError
from rlhf.runtime.run_folder import RunFiles
from tests.tiny_ppo import comparable, merged, ppo_config, ppo_settings, run_ppo

ABSURD = {"learning_rate": 0.1, "schedule": "constant"}


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Eight steps at a learning rate ten times too high, with a checkpoint after every second one."""
    folder = tmp_path_factory.mktemp("absurd")
    changes: dict[str, Any] = {"steps": 8, "checkpoint": {"every_steps": 2, "keep_last": 9}, "sample_prompts": 0}
    return ppo_settings(folder, tiny_llama_folder, optimizer=ABSURD, **changes)


@pytest.fixture(scope="module")
def absurd(settings: dict[str, Any]) -> RunFiles:
    return run_ppo(PpoConfig.model_validate(settings))


def test_an_absurd_learning_rate_is_told_in_alerts_summary_and_report(absurd: RunFiles) -> None:
    alerts = absurd.read_alerts()
    rules = [alert["rule"] for alert in alerts]
    assert "clip_fraction" in rules
    assert len(set(rules)) == len(rules), "trouble that lasts is told once"
    clipped = alerts[rules.index("clip_fraction")]
    assert clipped["step"] == 5
    assert "optimizer.learning_rate" in str(clipped["remedy"])
    health: Any = absurd.read_summary()["health"]
    assert health["verdict"] in {"warning", "error"}
    assert [(entry["step"], entry["rule"]) for entry in health["alerts"]] == [(a["step"], a["rule"]) for a in alerts]
    assert "policy/clipfrac is" in absurd.report_path.read_text(encoding="utf-8")


def test_the_console_shows_an_alert_as_one_line_below_its_step(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run_ppo(PpoConfig.model_validate(merged(settings, run_dir=str(tmp_path / "run"), steps=5)))
    lines = capsys.readouterr().out.splitlines()
    (line,) = [line for line in lines if "(clip_fraction)" in line]
    assert line.startswith("ppo warning at step 5 (clip_fraction): policy/clipfrac is ")
    assert lines.index(line) > next(index for index, text in enumerate(lines) if text.startswith("ppo 5/5"))


@pytest.mark.parametrize("last_kept", [2, 6], ids=["before the alert", "after the alert"])
def test_a_resumed_run_tells_the_same_alerts(
    tmp_path: Path, settings: dict[str, Any], absurd: RunFiles, last_kept: int
) -> None:
    config = PpoConfig.model_validate(merged(settings, run_dir=str(tmp_path / "run")))
    shutil.copytree(absurd.path, config.run_dir)
    # As if it had been killed two steps after that checkpoint.
    run = RunFiles(config.run_dir)
    for folder in run.checkpoints_path.iterdir():
        if int(folder.name.removeprefix("step-")) > last_kept:
            shutil.rmtree(folder)
    run.summary_path.unlink()
    run_ppo(config, resume=True)
    assert comparable(run.read_metrics()) == comparable(absurd.read_metrics())
    assert run.alerts_path.read_bytes() == absurd.alerts_path.read_bytes()
    assert run.read_summary()["health"] == absurd.read_summary()["health"]


def test_a_run_at_rest_is_healthy(tmp_path: Path, tiny_llama_folder: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 1e-6}, "steps": 6, "sample_prompts": 0}
    run = run_ppo(ppo_config(tmp_path, tiny_llama_folder, **changes))
    assert run.read_summary()["health"] == {"verdict": "healthy", "alerts": []}
    assert not run.alerts_path.exists()


def test_a_number_that_ends_the_run_is_an_alert_that_names_the_tensor(
    tmp_path: Path, tiny_llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, optimizer={"learning_rate": 1e30}, sample_prompts=0)
    with pytest.raises(NonFiniteLossError) as error:
        run_ppo(config)
    assert error.value.tensor is not None
    (alert,) = RunFiles(config.run_dir).read_alerts()
    assert (alert["step"], alert["rule"], alert["severity"]) == (1, "training_stopped", "error")
    assert alert["finding"] == f"policy loss is nan (first tensor that is not finite: {error.value.tensor})"
    assert "ppo error at step 1 (training_stopped)" in capsys.readouterr().out
    assert json.loads(RunFiles(config.run_dir).alerts_path.read_text(encoding="utf-8"))["cause"]
