"""The terms of the memory plan, worked by hand on a small and uneven shape."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policies.model_shape import ModelShape, shape_of
from rlhf.config import PpoConfig
from rlhf.planning import memory_plan, memory_terms
from rlhf.planning.memory_plan import Models, StepSizes, actor_memory
from rlhf.runtime.placement import ALL_ROLES
from tests.policies.test_model_shape import LLAMA, tensors
from tests.tiny_ppo import ppo_config, ppo_settings

SHAPE: ModelShape = shape_of(LLAMA, tensors())
"""V 10, D 4, L 2, two query heads and one key-value head of 2, I 6; 300 weights, 240 of them in linear layers."""
LORA = Models(
    base=SHAPE,
    bytes_per_weight=4,
    policy_adapter=348,
    reference_adapter=0,
    critic_adapter=348,
    adapted=240,
    rewards={"reward models": 7},
)
STEP = StepSizes(samples=8, sequence_tokens=5, response_tokens=2, minibatch_rows=4, rows=4, scoring_rows=8)


def test_quantized_layers_are_codes_and_a_scale_for_every_64_of_them() -> None:
    # 60 of 300 weights are embedding and norms; 240 codes need 4 scales.
    assert memory_terms.weight_bytes(SHAPE, 2, "none") == 600
    assert memory_terms.weight_bytes(SHAPE, 2, "int8") == 120 + 240 + 16
    assert memory_terms.weight_bytes(SHAPE, 4, "nf4") == 240 + 120 + 16


def test_the_optimizer_has_two_float32_moments_and_the_rest_of_a_bfloat16_weights_master() -> None:
    assert memory_terms.optimizer_bytes(100, 4) == 800
    assert memory_terms.optimizer_bytes(100, 2) == 1000


def test_activations_of_five_tokens() -> None:
    def kept(**changes: Any) -> int:
        settings: dict[str, Any] = {
            "bytes_per_number": 4,
            "adapter_rank": 3,
            "probabilities": False,
            "sequence_tokens": 5,
            "is_checkpointed": False,
        }
        return memory_terms.activation_bytes(SHAPE, 5, **settings | changes)

    # 16 around the norms, 8 + 4 of attention, 24 of the MLP, 21 of the adapters in each layer; 8 around the last norm.
    assert kept() == 5 * (2 * 73 + 8) * 4
    assert kept(adapter_rank=0) == 5 * (2 * 52 + 8) * 4
    assert kept(is_checkpointed=True) == 5 * (2 * 4 + 73 + 8) * 4
    # A probability for each of 2 heads and 5 tokens.
    assert kept(probabilities=True, bytes_per_number=2) == 5 * (2 * 83 + 8) * 2


def test_mixed_precision_keeps_the_residual_stream_in_float32() -> None:
    # A layer: 2 * 4 float32; 5 * 4 + 12 + 24 + 21 in bfloat16. Last norm: 4 of both.
    kept = memory_terms.mixed_activation_bytes(SHAPE, 5, adapter_rank=3)
    assert kept == 5 * (2 * (8 * 4 + 77 * 2) + 4 * 6)


def test_a_tile_of_logits_has_all_its_columns_and_copies_of_those_in_use() -> None:
    assert memory_terms.tiled_logits_bytes(3, SHAPE, device="cpu", trains_output=False) == 3 * (32768 + 7 * 10) * 4
    assert memory_terms.tiled_logits_bytes(5000, SHAPE, device="cuda", trains_output=True) == 4096 * 32768 * 4 + 160


def test_keys_and_values_of_seven_tokens() -> None:
    assert memory_terms.cache_bytes(SHAPE, 7, 2) == 2 * 7 * 2 * 2 * 2


def test_logits_come_in_chunks_of_a_bounded_size() -> None:
    assert memory_terms.logits_bytes(6, 10, 4) == 6 * 10 * 12
    assert memory_terms.logits_bytes(6, 10, 2) == 6 * 10 * 14
    assert memory_terms.logits_bytes(10**9, 2**20, 4) == 2**27 * 12


def test_a_step_falls_into_minibatches_and_micro_batches(tmp_path: Path) -> None:
    rollout = {
        "prompts_per_step": 5,
        "responses_per_prompt": 2,
        "max_prompt_tokens": 30,
        "sampling": {"max_response_tokens": 8},
    }
    algorithm = {"minibatches": 3}
    config = ppo_config(tmp_path, "model", rollout=rollout, algorithm=algorithm, micro_batch_tokens=100)
    # 10 samples in minibatches of 4, 4 and 2; two sequences of 38 tokens fit into a micro-batch.
    assert StepSizes.of(config, 64) == StepSizes(10, 38, 8, 4, 2, 2)
    assert StepSizes.of(config, 64).accumulates
    # A prompt leaves room for the response in the model's context.
    assert StepSizes.of(config, 20).sequence_tokens == 20


def test_gradients_wait_for_each_other(tmp_path: Path) -> None:
    lora = ppo_config(tmp_path, "model")
    # The policy's wait while the critic's pass runs; the critic's own are there once it is the second of its passes.
    assert memory_plan.gradient_bytes(lora, LORA, accumulates=False) == 348 * 4
    assert memory_plan.gradient_bytes(lora, LORA, accumulates=True) == 2 * 348 * 4
    head = ppo_config(tmp_path, "model", critic={"kind": "head"})
    assert memory_plan.gradient_bytes(head, LORA, accumulates=False) == 0
    full = ppo_config(tmp_path, "model", model={"tuning": {"kind": "full"}, "dtype": "bfloat16"})
    models = Models(SHAPE, 2, 0, 0, 0, 0, {})
    assert memory_plan.gradient_bytes(full, models, accumulates=False) == 300 * 2
    assert memory_plan.gradient_bytes(full, models, accumulates=True) == 2 * 300 * 4


def test_the_peak_is_what_stays_and_the_phase_that_needs_most(tmp_path: Path) -> None:
    memory = actor_memory("driver", ALL_ROLES, "cpu", ppo_config(tmp_path, "model"), LORA)
    assert memory.resident == {
        "base weights": 1200,
        "adapters": 2 * 348 * 4,
        "reward models": 7,
        "optimizer": 2 * 348 * 8,
    }
    phases = {phase: sum(terms.values()) for phase, terms in memory.phases.items()}
    assert set(phases) == {"rollout", "scoring", "update"}
    assert memory.peak == 1200 + 696 * 12 + 7 + max(phases.values())
    assert phases[str(memory.peak_phase)] == max(phases.values())


@pytest.mark.parametrize(
    ("roles", "resident"),
    [
        (("reward",), {"reward models": 7}),
        (("rollout",), {"base weights": 1200, "adapters": 1392}),
        (("reference",), {"base weights": 1200, "adapters": 1392}),
        (("learner",), {"base weights": 1200, "adapters": 2784, "optimizer": 5568}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_an_actor_holds_what_its_roles_need(tmp_path: Path, roles: Any, resident: dict[str, int]) -> None:
    assert actor_memory("actor", roles, "cpu", ppo_config(tmp_path, "model"), LORA).resident == resident


def test_full_tuning_copies_the_model_for_reference_and_critic(tmp_path: Path) -> None:
    config = ppo_config(tmp_path, "model", model={"tuning": {"kind": "full"}, "dtype": "bfloat16"})
    models = Models(SHAPE, 2, 0, 0, 0, 0, {})
    resident = actor_memory("driver", ALL_ROLES, "cuda", config, models).resident
    assert resident == {
        "base weights": 600,
        "reference copy": 600,
        "critic copy": 600,
        "optimizer": 2 * 300 * 10,
    }
    # Alone, the learner needs no reference.
    assert "reference copy" not in actor_memory("learner", ("learner",), "cuda", config, models).resident


def test_without_a_critic_nothing_of_one_is_planned(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"algorithm": {"advantages": {"kind": "rloo"}}, "rollout": {"responses_per_prompt": 2}}
    settings = ppo_settings(tmp_path, "model", model={"tuning": {"kind": "full"}, "dtype": "bfloat16"}, **changes)
    config = PpoConfig.model_validate(settings | {"critic": {}})
    models = Models(SHAPE, 2, 0, 0, 0, 0, {})
    resident = actor_memory("driver", ALL_ROLES, "cuda", config, models).resident
    assert resident == {"base weights": 600, "reference copy": 600, "optimizer": 300 * 10}
    assert memory_plan.gradient_bytes(config, models, accumulates=False) == 0


def test_a_quantized_base_is_neither_merged_nor_packed_and_one_layer_at_a_time_is_numbers(tmp_path: Path) -> None:
    config = ppo_config(tmp_path, "model")
    memory = actor_memory("driver", ALL_ROLES, "cpu", config, replace(LORA, quantization="int8"))
    assert memory.resident["base weights"] == 240 + 240 + 16
    assert {terms["dequantized layer"] for terms in memory.phases.values()} == {24 * 4}
    assert memory.phases["rollout"]["merged weights"] == 0


def split(**learner: Any) -> dict[str, Any]:
    return {"placement": {"kind": "split", "learner": learner}}


def test_ranks_divide_a_minibatch_and_with_sharding_the_layers(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": {"tuning": {"kind": "full"}}, "critic": {"kind": "head"}}
    models = Models(SHAPE, 4, 0, 0, 0, 0, {})

    def learner(**changes: Any) -> memory_plan.ActorMemory:
        return actor_memory(
            "learner", ("learner",), "cpu", ppo_config(tmp_path, "model", **settings, **changes), models
        )

    alone, two, cut = learner(), learner(**split(workers=2)), learner(**split(workers=2, sharding="full"))
    assert two.resident == alone.resident == {"base weights": 1200, "optimizer": 2400}
    assert two.phases["update"]["activations"] == alone.phases["update"]["activations"] // 2
    # 60 weights stay whole, and of 240 each rank has 120; a layer of 120 computes while the next one comes.
    assert cut.resident == {"base weights": 720, "optimizer": 1440}
    assert cut.phases["update"]["whole layers"] == 2 * 120 * 4


def test_a_checkpoint_passes_through_main_memory_beside_a_gpu(tmp_path: Path) -> None:
    config = ppo_config(tmp_path, "model")
    host = actor_memory("learner", ("learner",), "cuda", config, LORA).host
    assert host["checkpoint"] == 2 * 348 * (4 + 8)
    assert "checkpoint" not in actor_memory("learner", ("learner",), "cpu", config, LORA).host


def test_decoding_copies_weights_only_where_that_pays(tmp_path: Path) -> None:
    config = ppo_config(tmp_path, "model")
    # Small weights are not packed: these models have none from 2^17 elements on.
    on_cpu = memory_plan.rollout_terms(config, LORA, STEP, "cpu")
    assert (on_cpu["merged weights"], on_cpu["packed weights"]) == (240 * 4, 0)
    # 4 slots of 5 tokens and 32 spare columns, and 4 prompts of 3 tokens in the prefill.
    assert on_cpu["keys and values"] == memory_terms.cache_bytes(SHAPE, 8 * 37 + 4 * 3, 4)
    assert on_cpu["logits"] == 8 * 10 * 16
    plain = ppo_config(tmp_path, "model", rollout={"engine": {"kind": "hf", "merge_adapter": False}})
    terms = memory_plan.rollout_terms(plain, LORA, STEP, "cpu")
    assert terms["merged weights"] == 0
    assert terms["keys and values"] == memory_terms.cache_bytes(SHAPE, 8 * 5, 4)


def test_a_weight_moves_into_its_layout_unless_the_adapter_reads_it() -> None:
    # Of 2^17 elements on: two layers of 2^17 and 2^18 beside a small one, and an output layer of 2^19.
    linears = tuple(replace(SHAPE.linears[0], rows=n, columns=2**10) for n in (2**7, 2**8, 2))
    tied = replace(SHAPE, linears=linears, vocabulary=2**9, hidden=2**10, output_parameters=0)
    own = replace(tied, output_parameters=2**19)
    assert memory_terms.packed_elements(own, "none", keeps_weights=False) == 2**18
    assert memory_terms.packed_elements(tied, "none", keeps_weights=False) == 2**18 + 2**19
    assert memory_terms.packed_elements(own, "none", keeps_weights=True) == 2**17 + 2**18 + 2**19
    assert memory_terms.packed_elements(tied, "int8", keeps_weights=False) == 2**19


@pytest.mark.parametrize(
    ("retention", "numbers"), [({"kind": "none"}, 0), ({"kind": "l2_sp"}, 1), ({"kind": "ewc", "data": "old"}, 2)]
)
def test_a_pull_of_weights_keeps_their_start_and_ewc_a_fisher_value_of_each(
    tmp_path: Path, tiny_llama_folder: Path, retention: dict[str, Any], numbers: int
) -> None:
    config = ppo_config(tmp_path, tiny_llama_folder, algorithm={"retention": retention})
    terms = memory_plan.learner_terms(config, LORA, trains_beside_reference=True)
    assert terms["retention"] == numbers * 348 * 4
