"""A run whose rollouts are decoded by a trace, beside one whose are not: a resumed run is a mixture of the two."""

from pathlib import Path

import pytest

from rlhf.config import PpoConfig
from rollout import compiled_engine
from tests.tiny_ppo import comparable, metrics_of, ppo_settings, run_ppo


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_traced_rollouts_change_no_number_of_a_run(
    tmp_path: Path, tiny_llama_folder: Path, monkeypatch: pytest.MonkeyPatch, tuning: str
) -> None:
    runs = []
    for name, steps in (("plain", 10**9), ("traced", 0)):
        monkeypatch.setattr(compiled_engine, "STEPS_BEFORE_TRACE", steps)
        folder = tmp_path / name
        folder.mkdir()
        settings = ppo_settings(folder, tiny_llama_folder, model={"tuning": {"kind": tuning}}, steps=2)
        runs.append(comparable(metrics_of(run_ppo(PpoConfig.model_validate(settings)))))
    assert runs[0] == runs[1]
