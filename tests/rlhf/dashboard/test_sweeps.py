"""The sweep configurations, by what W&B's own agent makes of them."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from rlhf.config_loading.loader import load_config
from rlhf.runtime.config import TrackingConfig
from rlhf.runtime.metric_registry import METRICS
from rlhf.runtime.run_folder import RunFolder
from rlhf.runtime.sinks.weights_and_biases import WandbSink
from rlhf.stages import STAGES, resolve

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def sweep(request: pytest.FixtureRequest) -> dict[str, Any]:
    """As W&B reads it."""
    return yaml.safe_load(request.param.read_text(encoding="utf-8"))


def trials(parameters: dict[str, dict[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    """What the server may send: every listed value, both ends of every range."""
    choices = [
        parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]
        for parameter in parameters.values()
    ]
    for values in itertools.zip_longest(*choices):
        filled = [given if given is not None else choice[0] for given, choice in zip(values, choices, strict=True)]
        yield {name: {"value": value} for name, value in zip(parameters, filled, strict=True)}


def agent_command(sweep: dict[str, Any], trial: dict[str, Any]) -> list[str]:
    """The command line of a trial: `wandb.wandb_agent.Agent._command_run` with the library's own parts."""
    arguments = create_sweep_command_args({"args": trial})
    words = create_sweep_command(list(sweep["command"]))
    macros = {f"${{{name}}}": values for name, values in arguments.items()}
    return [word for chunk in words for word in macros.get(chunk, [chunk])]


def run_with_recorder(command: list[str], folder: Path) -> list[str]:
    """What `rlhf` receives when the agent runs the command."""
    recorder = folder / "rlhf"
    recorder.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n", encoding="utf-8")
    recorder.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "WANDB_RUN_ID": "trial7"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    return json.loads(output)


def test_there_is_a_sweep() -> None:
    assert FILES


def test_every_trial_is_a_configuration_that_its_stage_accepts(sweep: dict[str, Any], tmp_path: Path) -> None:
    for number, trial in enumerate(trials(sweep["parameters"])):
        words = run_with_recorder(agent_command(sweep, trial), tmp_path)
        stage, path, *overrides = words
        config: Any = load_config(resolve(STAGES[stage].config), ROOT / path, overrides)
        assert config.run_dir == "runs/sweep/trial7", "each trial has a run folder of its own"
        assert config.tracking.wandb == "online", "the server must see the trial's metric"
        assert config.tracking.project == sweep["project"]
        for key, setting in trial.items():
            value = config
            for part in key.split("."):
                value = getattr(value, part)
            assert value == setting["value"], (number, key)


def test_the_metric_of_a_sweep_is_one_that_is_logged(sweep: dict[str, Any]) -> None:
    assert sweep["metric"]["name"] in METRICS


class StartedRun:
    """A W&B run that only knows how it was started."""

    def define_metric(self, *_arguments: object, **_options: object) -> None:
        """Takes what a real one takes."""


@pytest.mark.parametrize(("sweep_id", "is_given"), [("sweep1", True), ("", False)], ids=["in a sweep", "alone"])
def test_a_trial_keeps_the_id_that_its_agent_gave_it(
    sweep_id: str, is_given: Literal[True, False], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Mapping[str, object]] = []

    def start(arguments: Mapping[str, object], _mode: str, **_options: object) -> StartedRun:
        started.append(arguments)
        return StartedRun()

    monkeypatch.setattr("rlhf.runtime.sinks.weights_and_biases._start_run", start)
    monkeypatch.setenv("WANDB_RUN_ID", "trial7")
    monkeypatch.setenv("WANDB_SWEEP_ID", sweep_id)
    with RunFolder.create(tmp_path / "run", {}) as folder:
        WandbSink(folder, TrackingConfig(), {}, "ppo", "offline")
        assert folder.wandb_run_id_path.read_text(encoding="utf-8").strip() == started[0]["id"]
    assert (started[0]["id"] == "trial7") is is_given
