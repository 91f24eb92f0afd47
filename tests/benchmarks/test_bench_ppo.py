"""What the PPO benchmark sets up and how it compares; the measuring itself is no test."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.config import PpoConfig
from tests.benchmarks.bench_ppo import COMPARISONS, ceiling, compared, main
from tests.benchmarks.ppo_floor import step_operations
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


def test_the_operations_of_a_step_are_those_counted_by_hand() -> None:
    # Width 32 with an MLP of 96: 4 * 32^2 + 3 * 32 * 96 = 13312 numbers a layer, an output layer of 32 * 10 = 320.
    # 2 samples of 3 + 4 tokens: 14 tokens and 8 of responses, or 2 * (2.25 + 4) = 12.5 where prompts are ragged.
    shape = Shape(hidden=32, layers=1, vocabulary=10, prompt_tokens=3, response_tokens=4, samples=2, epochs=1)
    forward, head = 2 * 13312 * 14, 2 * 320 * 8
    full = step_operations(shape, CASES["full"], "model", 4.0)
    assert full == 4 * forward + 2 * head + 2 * 3 * forward + 3 * head
    # Factors of rank 16: 16 * (4 * 64 + 3 * 128) = 10240.
    forward, adapter = 2 * (13312 + 10240) * 14, 2 * 10240 * 14
    lora = step_operations(shape, CASES["lora"], "head", 4.0)
    assert lora == 4 * forward + 2 * head + 2 * forward + adapter + 2 * head
    ragged = step_operations(shape, CASES["lora_ragged"], "adapter", 4.0)
    assert ragged == (4 * forward + 2 * (2 * forward + adapter)) * 12.5 / 14 + 4 * head


def test_the_ceiling_is_the_ratio_of_a_step_that_is_all_products() -> None:
    rows = [{"ours": {"response_tokens_mean": 8.0}, "trl": {"samples_per_second": 0.5}}]
    limit = step_operations(TINY, CASES["full"], "model", 8.0) / 4.0
    found = ceiling("full", TINY, rows, limit)
    assert found["product_seconds"] == 4.0
    assert found["ceiling_samples_per_second"] == TINY.samples / 4.0 / 0.5


def test_a_missing_peer_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--peer", "nowhere.py"])
    assert "error: nothing at nowhere.py; give it with --peer (or RLHF_TRL_PPO_BASELINE)" in capsys.readouterr().err
