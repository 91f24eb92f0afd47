"""What the PPO benchmark sets up and how it compares; the measuring itself is no test."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.config import PpoConfig
from tests.benchmarks.bench_ppo import COMPARISONS, compared, main
from tests.benchmarks.ppo_workload import CASES, Shape, measured, ppo_settings, stop_tokens

TINY = Shape(hidden=64, layers=1, vocabulary=512, prompt_tokens=8, response_tokens=8, samples=4, epochs=2)


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_comparison_is_a_run_that_the_configuration_allows(name: str, tmp_path: Path) -> None:
    case, changes = COMPARISONS[name]
    config = PpoConfig.model_validate(ppo_settings(tmp_path, CASES[case], TINY, steps=2) | changes)
    assert config.model.dtype == "bfloat16"
    assert config.critic_kind == changes.get("critic", {"kind": "model"})["kind"]
    lengths = [
        len(json.loads(line)["prompt"].split()) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()
    ]
    assert len(lengths) == 2 * TINY.samples
    assert set(lengths) <= set(range(4, 9)) if CASES[case].ragged else set(lengths) == {8}


def test_ragged_responses_have_half_of_the_longest_length_on_average() -> None:
    shape = Shape()
    share = len(stop_tokens(CASES["lora_ragged"], shape)) / shape.vocabulary
    lengths = np.minimum(np.random.default_rng(0).geometric(share, 100_000), shape.response_tokens)
    assert lengths.mean() == pytest.approx(shape.response_tokens / 2, rel=0.02)
    assert len(stop_tokens(CASES["lora"], shape)) == 1


def test_the_first_step_is_told_apart_because_it_allocates_and_compiles() -> None:
    row = {f"time/{phase}": 1.0 for phase in ("rollout", "score", "experience", "update", "sync")}
    row |= {"rollout/response_length_mean": 7.0, "perf/padding_waste": 0.0, "policy/first_step_ratio_error": 0.01}
    rows = [
        row | {"time/step": 9.0, "perf/peak_memory_mib": 100.0},
        row | {"time/step": 2.0, "perf/peak_memory_mib": 110.0},
    ]
    result = measured(rows, TINY)
    assert result["first_step_seconds"] == 9.0
    assert result["samples_per_second"] == 2.0
    assert result["peak_memory_mib"] == 110.0


def test_ratios_are_of_medians_ours_over_theirs() -> None:
    def side(speed: float, memory: float) -> dict[str, float]:
        return {"samples_per_second": speed, "peak_memory_mib": memory}

    rows = [{"ours": side(speed, 50.0), "trl": side(theirs, 200.0)} for speed, theirs in ((9, 2), (6, 4), (1, 3))]
    result = compared("lora", rows)
    assert result["ratio_samples_per_second"] == 2.0
    assert result["ratio_peak_memory"] == 0.25
    assert result["target_samples_per_second"] == 4.0


def test_a_missing_peer_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--peer", "nowhere.py"])
    assert "error: nothing at nowhere.py; give it with --peer (or RLHF_TRL_PPO_BASELINE)" in capsys.readouterr().err
