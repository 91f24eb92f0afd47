"""The memory of stages that train one model: which terms there are, and when."""

from pathlib import Path
from typing import Any

import pytest

from policies.config import ArchitectureConfig
from policies.loading import random_backbone
from policies.model_shape import model_shape
from rlhf.config import PretrainConfig, RewardConfig, SftConfig
from rlhf.planning.command import describe_training
from rlhf.planning.training_memory import training_memory
from tests.tiny_models import build_tokenizer

MIB = 2**20


def sft(folder: Path, **changes: Any) -> SftConfig:
    settings: dict[str, Any] = {
        "run_dir": "runs/x", "model": {"path": str(folder)}, "data": {"train": "t"},
        "examples_per_step": 8, "micro_batch_examples": 8, "max_tokens": 32,
    }  # fmt: skip
    return SftConfig.model_validate(settings | changes)


def test_full_tuning_holds_weights_and_two_moments(tiny_llama_folder: Path) -> None:
    weights = 4 * model_shape(str(tiny_llama_folder)).parameters
    memory = training_memory(sft(tiny_llama_folder), "cpu")
    assert memory.resident == {"base weights": weights, "optimizer": 2 * weights}
    assert "gradients" not in memory.phases["update"]
    assert memory.phases["optimizer step"] == {"gradients": weights}


def test_gradients_wait_for_the_next_micro_batch_and_ranks_take_their_part(tiny_llama_folder: Path) -> None:
    accumulating = training_memory(sft(tiny_llama_folder, micro_batch_examples=4), "cpu")
    assert "gradients" in accumulating.phases["update"]
    whole = training_memory(sft(tiny_llama_folder), "cpu").phases["update"]
    assert accumulating.phases["update"]["activations"] == whole["activations"] // 2


def test_lora_trains_little_on_a_base_that_may_be_quantized(tiny_llama_folder: Path) -> None:
    model = {"path": str(tiny_llama_folder), "tuning": {"kind": "lora", "rank": 2}}
    plain = training_memory(sft(tiny_llama_folder, model=model), "cpu").resident
    small = training_memory(sft(tiny_llama_folder, model=model | {"quantization": "nf4"}), "cpu").resident
    assert plain["optimizer"] == 2 * plain["adapters"] < plain["base weights"] / 4
    assert small["base weights"] < plain["base weights"]


@pytest.mark.parametrize(("kind", "copies"), [("kl", 1), ("l2_sp", 1), ("ewc", 2)])
def test_what_is_kept_of_the_old_model_is_counted(tiny_llama_folder: Path, kind: str, copies: int) -> None:
    weights = 4 * model_shape(str(tiny_llama_folder)).parameters
    retention = {"kind": kind} | ({"data": "old"} if kind == "ewc" else {})
    assert training_memory(sft(tiny_llama_folder, retention=retention), "cpu").resident["retention"] == copies * weights
    model = {"path": str(tiny_llama_folder), "tuning": {"kind": "lora", "rank": 2}}
    of_adapter = training_memory(sft(tiny_llama_folder, model=model, retention=retention), "cpu").resident
    assert of_adapter.get("retention", 0) == (copies * of_adapter["adapters"] if kind != "kl" else 0)


def test_a_model_from_scratch_has_the_size_that_it_will_have() -> None:
    architecture = ArchitectureConfig(hidden_size=32, layers=3, heads=4, key_value_heads=2, tie_embeddings=False)
    tokenizer = build_tokenizer()
    config = PretrainConfig.model_validate(
        {
            "run_dir": "runs/x",
            "model": {"architecture": architecture.model_dump(), "vocabulary_size": len(tokenizer)},
            "data": {"train": "t"},
        }
    )
    built = random_backbone(architecture, tokenizer, seed=0).model
    assert training_memory(config, "cpu").resident["base weights"] == 4 * built.num_parameters()


def test_a_dry_run_says_what_a_stage_needs_or_why_that_is_not_known(tiny_llama_folder: Path) -> None:
    config = sft(tiny_llama_folder, ranks={"workers": 2}, micro_batch_examples=4)
    lines = describe_training(config)
    assert lines[0] == "ranks: 2 actors train together"
    assert "every row at its longest" in lines[1]
    assert "each rank on cpu" in lines[2]
    (line,) = describe_training(sft(tiny_llama_folder / "nothing"))
    assert line.startswith("memory: not known: ")


@pytest.mark.parametrize(("dtype", "is_mixed"), [("float32", False), ("bfloat16", True)])
def test_products_in_bfloat16_need_the_weights_in_it(tiny_llama_folder: Path, dtype: str, *, is_mixed: bool) -> None:
    config = RewardConfig.model_validate(
        {"run_dir": "r", "model": {"path": str(tiny_llama_folder)}, "data": {"train": "t"}, "compute_dtype": dtype}
    )
    assert ("bfloat16 weights" in training_memory(config, "cpu").phases["update"]) == is_mixed
