"""What the environment holds stays there: no key and no token reaches a file of a run, its output or its log."""

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from rlhf.cli import main
from tests.tiny_ppo import ppo_settings, write_yaml

SECRETS = {
    "WANDB_API_KEY": "f00dfeed" * 5,
    "HF_TOKEN": "hf_" + "NeverWriteMeDown" * 2,
    "RLHF_REWARD_TOKEN": "reward-token-NeverWriteMeDown",
    "OPENAI_API_KEY": "sk-NeverWriteMeDown-0123456789",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A process that holds all of them."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return SECRETS


def leaks(folder: Path) -> list[str]:
    """`<file>: <variable>` for each secret in a file's bytes or name, its encodings included."""
    found = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for name, value in SECRETS.items():
            forms = (value.encode(), value.encode("utf-16-le"), value[::-1].encode())
            if value in path.name or any(form in content for form in forms):
                found.append(f"{path.relative_to(folder)}: {name}")
    return found


def test_the_scan_finds_a_secret_in_a_file_of_any_depth(tmp_path: Path) -> None:
    deep = tmp_path / "wandb" / "files"
    deep.mkdir(parents=True)
    (deep / "state.bin").write_bytes(b"\x00\xff" + SECRETS["HF_TOKEN"].encode() + b"\x01")
    assert leaks(tmp_path) == ["wandb/files/state.bin: HF_TOKEN"]


def test_a_run_leaves_no_secret_in_its_folder_its_output_or_its_log(
    tmp_path: Path,
    tiny_llama_folder: Path,
    secrets: dict[str, str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracking = {"wandb": "offline", "tensorboard": find_spec("tensorboard") is not None}
    changes: dict[str, Any] = {"steps": 1, "checkpoint": {"every_steps": 1}, "tracking": tracking}
    config = write_yaml(tmp_path, ppo_settings(tmp_path, tiny_llama_folder, **changes))
    with caplog.at_level(logging.DEBUG):
        assert main(["ppo", str(config)]) == 0
    run = tmp_path / "run"
    assert {"config.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html"} <= {
        path.name for path in run.iterdir()
    }
    assert list((run / "wandb").glob("offline-run-*/run-*.wandb"))
    assert leaks(tmp_path) == []
    output = "".join(capfd.readouterr()) + caplog.text
    assert "ppo 1/1" in output
    assert [name for name, value in secrets.items() if value in output] == []


def test_a_run_that_fails_tells_no_secret(
    tmp_path: Path, tiny_llama_folder: Path, secrets: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9/v1/score"
    changes: dict[str, Any] = {"reward": [{"kind": "http", "url": url, "timeout_seconds": 1.0, "retries": 0}]}
    config = write_yaml(tmp_path, ppo_settings(tmp_path, tiny_llama_folder, **changes))
    assert main(["ppo", str(config)]) in {1, 2}
    output = "".join(capfd.readouterr())
    assert "error: " in output
    assert [name for name, value in secrets.items() if value in output] == []
    assert leaks(tmp_path) == []
