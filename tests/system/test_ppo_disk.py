"""A disk that fills up under a PPO run: one line, the last good checkpoint, and the same numbers after --resume."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rlhf import cli
from rlhf.config import PpoConfig
from rlhf.runtime import training_state
from rlhf.runtime.run_folder import RunFiles, RunFolder
from rlhf.runtime.training_state import load_latest_checkpoint
from tests.full_disk import largest_file
from tests.tiny_ppo import comparable, ppo_settings, run_ppo, write_yaml


@pytest.fixture(scope="module")
def settings(tiny_llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("disk")
    return ppo_settings(folder, tiny_llama_folder, steps=2, micro_batch_tokens=4096, sample_prompts=0)


@pytest.fixture(scope="module")
def straight(settings: dict[str, Any]) -> RunFiles:
    return run_ppo(PpoConfig.model_validate(settings))


def fill_at_the_second_checkpoint(monkeypatch: pytest.MonkeyPatch, disk: ExitStack, _run_dir: Path) -> None:
    write, calls = training_state._write_state, iter(range(9))

    def written(*arguments: Any) -> None:
        if next(calls) == 1:
            disk.enter_context(largest_file(1000))
        write(*arguments)

    monkeypatch.setattr(training_state, "_write_state", written)


def fill_at_the_second_line(monkeypatch: pytest.MonkeyPatch, disk: ExitStack, run_dir: Path) -> None:
    append = RunFolder.append_metrics

    def appended(folder: RunFolder, step: int, metrics: Any) -> None:
        if step == 2:
            disk.enter_context(largest_file((run_dir / "metrics.jsonl").stat().st_size + 100))
        append(folder, step, metrics)

    monkeypatch.setattr(RunFolder, "append_metrics", appended)


@pytest.mark.parametrize(
    ("fill", "file"),
    [
        (fill_at_the_second_checkpoint, "checkpoint of step 2: {run}/checkpoints/step-00000002"),
        (fill_at_the_second_line, "{run}/metrics.jsonl"),
    ],
    ids=["checkpoint", "metrics"],
)
def test_a_full_disk_ends_in_one_line_and_the_run_goes_on_from_the_last_checkpoint(
    tmp_path: Path,
    settings: dict[str, Any],
    straight: RunFiles,
    capsys: pytest.CaptureFixture[str],
    fill: Any,
    file: str,
) -> None:
    run = tmp_path / "run"
    config = write_yaml(tmp_path, {**settings, "run_dir": str(run)})
    with pytest.MonkeyPatch.context() as monkeypatch, ExitStack() as disk:
        fill(monkeypatch, disk, run)
        assert cli.main(["ppo", str(config)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {file.format(run=run)} could not be written (file too large); make room on that")
    assert error.endswith(f"state saved in {run / 'checkpoints'}; continue with: rlhf ppo {config} --resume")
    assert "Traceback" not in error
    state = load_latest_checkpoint(run / "checkpoints")
    assert state is not None
    assert state.step == 1

    assert cli.main(["ppo", str(config), "--resume"]) == 0
    assert comparable(RunFiles(run).read_metrics()) == comparable(straight.read_metrics())
