"""The rollout benchmark compares like with like: every contender does the same work, and its size is known."""

from typing import cast

import numpy as np
import pytest

from policies.backbone import Backbone
from rollout.config import HfEngineConfig
from rollout.types import Completion
from tests.benchmarks import rollout_contenders
from tests.benchmarks.bench_rollout import CONTENDERS as RACED
from tests.benchmarks.bench_rollout import _summary
from tests.benchmarks.rollout_contenders import CONTENDERS
from tests.benchmarks.rollout_measures import work
from tests.benchmarks.rollout_workload import KINDS, prompts, response_lengths


def test_ragged_responses_vary_eightfold_and_fixed_ones_not_at_all() -> None:
    ragged, fixed = response_lengths("ragged"), response_lengths("fixed")
    assert (ragged.min(), ragged.max(), ragged.mean()) == (8, 64, pytest.approx(22.9, abs=0.1))
    assert set(fixed.tolist()) == {64}
    limits = [prompt.limits for prompt in prompts("ragged")]
    assert [limit and limit.max_response_tokens for limit in limits] == ragged.tolist()


def test_the_work_is_that_of_the_matrix_products_and_of_the_keys_and_values_read() -> None:
    # 25.3M weights in the layers, 4.2M in the output layer; 64 * (64 + 63) passes, 64 * 64 logits.
    assert work("fixed")["flops"] == pytest.approx(2 * (64 * 127 * 25.3e6 + 64 * 64 * 4.194e6), rel=1e-2)
    # Tokens 2 to 64 read 65 to 127 columns of 8 layers * 2 * 512 numbers of 2 bytes.
    assert work("fixed")["bytes"] == 64 * sum(range(65, 128)) * 8 * 2 * 512 * 2
    assert np.all([work("ragged")[key] < work("fixed")[key] for key in ("flops", "bytes")])


def test_all_contenders_are_raced() -> None:
    assert tuple(CONTENDERS) == RACED


def test_an_engine_is_kept_between_runs_as_training_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []

    class Engine:
        def generate(self, *_arguments: object, **_settings: object) -> list[Completion]:
            return []

    def build(*arguments: object) -> Engine:
        built.append(arguments[-1])
        return Engine()

    monkeypatch.setattr(rollout_contenders, "build_generator", build)
    monkeypatch.setattr(rollout_contenders, "prepare_environment", lambda: None)
    run, backbone, engine = rollout_contenders.ours(HfEngineConfig()), cast(Backbone, object()), HfEngineConfig()
    assert [run(backbone, kind).tokens for kind in KINDS] == [0, 0]
    assert built == [engine]


def test_ratios_are_taken_round_by_round_so_that_a_busy_round_counts_once() -> None:
    def run(seconds: float, processor_seconds: float) -> dict[str, float | None]:
        return {
            "seconds": seconds,
            "processor_seconds": processor_seconds,
            "tokens": 100,
            "peak_above_loaded_model_mib": 10 * seconds,
            "logprob_error": seconds / 100,
        }

    runs = {
        "compiled": [run(1, 1), run(10, 2), run(2, 2)],
        "hf": [run(2, 2), run(30, 4), run(4, 6)],
        "generate": [run(3, 3), run(40, 8), run(6, 6)],
        "generate_batch": [run(1, 1)] * 3,
    }
    limits = [
        {"matmul_flops": 100.0, "memory_bandwidth": 5.0, "work": {"flops": 50.0, "bytes": 10.0}},
        {"matmul_flops": 90.0, "memory_bandwidth": 20.0, "work": {"flops": 50.0, "bytes": 10.0}},
    ]
    summary = _summary(runs, limits)

    assert summary["ratios"]["compiled / hf"] == {"seconds": 2.0, "processor_seconds": 2.0}
    assert summary["ratios"]["compiled / generate"] == {"seconds": 3.0, "processor_seconds": 3.0}
    assert summary["limits"]["least_seconds"] == 0.5  # 50 / 100, above 10 / 20
    compiled = summary["contenders"]["compiled"]
    assert (compiled["tokens_per_s"], compiled["share_of_limit"]) == (50.0, 0.25)
    assert (compiled["peak_above_loaded_model_mib"], compiled["logprob_error_nats"]) == (100.0, 0.1)
