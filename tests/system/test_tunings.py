"""Every tuning method in whole runs: SFT by its configuration file, PPO with verified weight sync, export, generate."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from policies.causal import CausalPolicy
from policies.config import ModelConfig, PTuningV2
from policies.loading import load_backbone, prepare_policy
from policies.sequences import pad_sequences
from rlhf import generate
from rlhf.config import DpoConfig, ExportConfig, GenerateConfig, PpoConfig, RewardConfig, SftConfig
from rlhf.config_loading.loader import load_config
from rlhf.export import run as export
from rlhf.learner import Learner
from rlhf.runtime.run_folder import RunFiles
from rlhf.trainers import dpo, sft
from tests.local_actors import without_ray
from tests.tiny_models import randomize
from tests.tiny_ppo import (
    PROMPTS,
    comparable,
    metrics_of,
    ppo_config,
    ppo_settings,
    run_ppo,
    write_reward_adapter,
    write_rows,
)
from tests.tunings import TUNINGS, VIRTUAL

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "tuning").glob("*.yaml"))
FAST = ("ia3", "houlsby", "prefix")
"""A method on weights, one behind them and one before the text; the others run the same test when asked for."""


VOWELS = [{"kind": "function", "name": "vowels", "function": "tests.system.scripted_rewards:vowels"}]
"""Scores that differ: where all samples are scored alike, whitening turns rounding into advantages."""


def in_ppo(name: str) -> Any:
    return pytest.param(name, marks=() if name in FAST else pytest.mark.slow)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_methods_configuration_file_trains_and_leaves_a_model_that_loads(
    path: Path, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": text, "completion": " on the mat"} for text in PROMPTS[:4]])
    changes = [f"data.train={rows}", f"data.eval={rows}", f"model.path={tiny_llama_folder}", "max_tokens=40"]
    changes += [f"run_dir={tmp_path / 'run'}", "examples_per_step=4", "micro_batch_examples=4", "epochs=3"]
    config = load_config(SftConfig, path, changes)
    sft.run(config, resume=False)

    first, *_, last = [float(str(row["loss/train"])) for row in RunFiles(config.run_dir).read_metrics()]
    assert last < first
    again = load_backbone(ModelConfig(path=f"{config.run_dir}/model", device="cpu"))
    assert again.adapters.names == (() if config.model.tuning.kind == "full" else ("policy", "reference"))


@pytest.mark.parametrize("name", ["head", "prefix", "p_tuning_lstm", "mix_and_match"])
def test_the_first_loss_of_sft_is_that_of_our_own_pass(name: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "where is the cat?", "completion": " on the mat"}, {"prompt": "who", "completion": " she sang"}]
    model = {"path": str(tiny_llama_folder), "tuning": TUNINGS[name].model_dump(), "device": "cpu"}
    data = {"train": write_rows(tmp_path / "rows.jsonl", rows)}
    settings = {"run_dir": str(tmp_path / "run"), "seed": 5, "model": model, "data": data, "max_tokens": 40}
    config = SftConfig.model_validate(settings | {"tracking": {"wandb": "off"}, "epochs": 1})
    inputs = sft.SftInputs(config)
    policy = CausalPolicy(inputs.backbone, adapter=inputs.adapter, temperature=1.0)
    examples = inputs.examples
    prompts = [one.token_ids[~one.loss_mask] for one in examples]
    batch = pad_sequences(prompts, [one.token_ids[one.loss_mask] for one in examples], pad_id=0)
    with torch.no_grad():
        expected = -policy.logprobs(batch).logprobs.sum() / batch.response_mask.sum()

    sft.run(config, resume=False)
    (row,) = RunFiles(config.run_dir).read_metrics()
    assert float(str(row["loss/train"])) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("name", ["ia3", "p_tuning_v2"])
def test_the_gradient_of_an_sft_step_is_that_of_its_own_examples(
    name: str, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    rows = [{"prompt": "where is the cat?", "completion": " on the mat"}]
    settings = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(tiny_llama_folder), "tuning": TUNINGS[name].model_dump(), "device": "cpu"},
        "data": {"train": write_rows(tmp_path / "rows.jsonl", rows)},
        "optimizer": {"learning_rate": 1e-9},
        "epochs": 3,
        "examples_per_step": 1,
        "micro_batch_examples": 1,
        "max_tokens": 40,
        "tracking": {"wandb": "off"},
    }
    config = SftConfig.model_validate(settings)
    sft.run(config, resume=False)
    norms = [float(str(row["policy/grad_norm"])) for row in RunFiles(config.run_dir).read_metrics()]
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-3)


@pytest.mark.parametrize("name", [in_ppo(name) for name in sorted(TUNINGS)])
def test_ppo_learns_by_each_method_in_step_with_its_sampler(name: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    model = {"tuning": TUNINGS[name].model_dump()}
    config = ppo_config(tmp_path, tiny_llama_folder, model=model, reward=VOWELS, steps=2)
    rows = metrics_of(run_ppo(config))

    assert all(row["policy/first_step_ratio_error"] < 1e-3 for row in rows)
    assert all(row["sync/canary_max_logprob_diff"] < 1e-4 for row in rows)
    assert rows[-1]["policy/grad_norm"] > 0
    # Off, the adapter is the reference; virtual tokens move the policy from it before anything is learned.
    assert (abs(rows[0]["objective/kl"]) < 1e-3) == (name not in VIRTUAL)
    assert abs(rows[-1]["objective/kl"]) > 1e-5


@pytest.mark.parametrize("name", [pytest.param("houlsby", marks=pytest.mark.slow), "prefix"])
def test_an_interrupted_run_goes_on_to_the_same_numbers(name: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    tuning = {"tuning": TUNINGS[name].model_dump()}
    straight = metrics_of(run_ppo(ppo_config(tmp_path, tiny_llama_folder, model=tuning, reward=VOWELS, steps=2)))
    config = ppo_config(
        tmp_path, tiny_llama_folder, model=tuning, reward=VOWELS, steps=2, run_dir=str(tmp_path / "again")
    )
    update = Learner.update

    def stop_at_the_second(self: Learner, *args: Any, step: int) -> dict[str, float]:
        if step == 1:
            raise KeyboardInterrupt
        return update(self, *args, step=step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "update", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            run_ppo(config)
    assert comparable(metrics_of(run_ppo(config, resume=True))) == comparable(straight)


@pytest.mark.parametrize("name", ["pissa", "mix_and_match", pytest.param("p_tuning_lstm", marks=pytest.mark.slow)])
def test_workers_on_models_of_their_own_repeat_the_run_of_one_base(
    name: str, tiny_llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_ray(monkeypatch)
    changes: dict[str, Any] = {"model": {"tuning": TUNINGS[name].model_dump()}, "reward": VOWELS, "steps": 2}
    changes["optimizer"] = {"learning_rate": 1e-3}  # Adam and the clips amplify rounding; this keeps it small.
    together = metrics_of(run_ppo(ppo_config(tmp_path, tiny_llama_folder, **changes)))
    split = {"kind": "split", "rollout": {"workers": 2}}
    apart = ppo_config(tmp_path, tiny_llama_folder, **changes, placement=split, run_dir=str(tmp_path / "split"))
    for one, other in zip(metrics_of(run_ppo(apart)), together, strict=True):
        assert one["objective/scores"] == other["objective/scores"]
        assert one["loss/policy"] == pytest.approx(other["loss/policy"], abs=1e-5)
        assert one["sync/canary_max_logprob_diff"] < 1e-4


def test_a_reward_model_of_another_method_keeps_a_base_of_its_own(tiny_llama_folder: Path, tmp_path: Path) -> None:
    reward = write_reward_adapter(tmp_path / "reward", tiny_llama_folder)
    source = {"kind": "model", "name": "proxy", "path": str(reward), "device": "cpu"}
    tuning = {"tuning": TUNINGS["ia3"].model_dump()}
    (row,) = metrics_of(run_ppo(ppo_config(tmp_path, tiny_llama_folder, model=tuning, reward=[source], steps=1)))
    assert np.isfinite(row["objective/scores"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an adapter critic on an output layer": (
        {"model": {"tuning": {"kind": "head"}}, "critic": {"kind": "adapter"}},
        r"critic\.kind=adapter: with model\.tuning\.kind=head.*critic\.kind=head or model",
    ),
    "a reward model's adapter as another method": (
        {"model": {"tuning": {"kind": "ia3"}}, "critic": {"start": "reward_model"}},
        r"critic\.start=reward_model: reward models are LoRA adapters",
    ),
    "vLLM": (
        {
            "model": {"tuning": {"kind": "bottleneck"}},
            "rollout": {"engine": {"kind": "vllm"}},
            "placement": {"kind": "split"},
        },
        r"vLLM cannot sample from model\.tuning\.kind=bottleneck; set rollout\.engine\.kind=compiled or hf",
    ),
    "vLLM with a variant": (
        {
            "model": {"tuning": {"kind": "lora", "variant": "dora"}},
            "rollout": {"engine": {"kind": "vllm"}},
            "placement": {"kind": "split"},
        },
        r"model\.tuning\.kind=lora, variant=dora",
    ),
    "cut layers": (
        {
            "model": {"tuning": {"kind": "prefix"}},
            "placement": {"kind": "split", "learner": {"workers": 2, "sharding": "full"}},
        },
        r"sharding=full: layers are cut with model\.tuning\.kind=full or lora, not prefix",
    ),
    "activations computed again": (
        {"model": {"tuning": {"kind": "prompt"}}, "activation_checkpointing": True},
        r"activation_checkpointing=true: .*virtual tokens of model\.tuning\.kind=prompt",
    ),
    "quantized weights": (
        {"model": {"tuning": {"kind": "ia3"}, "quantization": "nf4"}},
        r"quantization=nf4 with tuning\.kind=ia3: only LoRA adapters",
    ),
    "half of IA3's modules": (
        {"model": {"tuning": {"kind": "ia3", "target_modules": ["k_proj"]}}},
        r"target_modules and feed_forward_modules belong together",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_by_the_configuration(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        PpoConfig.model_validate(ppo_settings(tmp_path, "m", **change))


@pytest.mark.parametrize("name", ["houlsby", "prefix"])
def test_dpo_starts_at_log_two_because_trl_and_our_reference_read_the_same_policy(
    name: str, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    prepare_policy(backbone, TUNINGS[name], seed=0)
    randomize(backbone.adapters, "policy", seed=1)
    backbone.adapters.save("policy", tmp_path / "adapter", tokenizer=backbone.tokenizer)
    pairs = [
        {"prompt": text, "chosen": " a cat", "rejected": " the dog ran " * n} for n, text in enumerate(PROMPTS[1:4], 1)
    ]
    model = {"path": str(tmp_path / "adapter"), "tuning": TUNINGS[name].model_dump(), "device": "cpu"}
    data = {"train": write_rows(tmp_path / "pairs.jsonl", pairs)}
    settings = {"run_dir": str(tmp_path / "run"), "model": model, "data": data, "max_tokens": 40, "epochs": 2}
    settings |= {"pairs_per_step": 3, "micro_batch_pairs": 3, "tracking": {"wandb": "off"}}
    config = DpoConfig.model_validate(settings)
    dpo.run(config, resume=False)

    first, last = [float(str(row["rm/loss"])) for row in RunFiles(config.run_dir).read_metrics()]
    assert first == pytest.approx(math.log(2), abs=1e-4)
    assert last != first


def test_a_reward_model_trains_in_full_or_with_lora_only() -> None:
    settings = {"run_dir": "r", "data": {"train": "t"}}
    pissa = {"kind": "lora", "variant": "pissa"}
    for tuning, message in (({"kind": "prefix"}, "tuning.kind=prefix"), (pissa, "tuning.variant=pissa")):
        with pytest.raises(ValueError, match=message):
            RewardConfig.model_validate(settings | {"model": {"path": "m", "tuning": tuning}})


@pytest.mark.parametrize("name", ["ia3", "head", "prefix"])
def test_a_trained_method_is_exported_where_that_is_exact_and_answers_either_way(
    name: str, tiny_llama_folder: Path, tmp_path: Path
) -> None:
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    prepare_policy(backbone, TUNINGS[name], seed=0)
    adapter, target = tmp_path / "adapter", tmp_path / "exported"
    backbone.adapters.save("policy", adapter, tokenizer=backbone.tokenizer)
    config = ExportConfig.model_validate({"model": {"path": str(adapter), "device": "cpu"}, "run_dir": str(target)})
    if name == "prefix":
        with pytest.raises(ValueError, match=r"adapter 'policy' \(PREFIX_TUNING\) cannot be merged"):
            export(config, resume=False)
        assert not target.exists()
    else:
        export(config, resume=False)
        assert not list(target.glob("adapter*"))
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "the cat"}])
    settings = {"run_dir": str(tmp_path / "answers"), "data": {"eval": prompts}, "tracking": {"wandb": "off"}}
    model = {"path": str(adapter), "device": "cpu"}
    answers = GenerateConfig.model_validate(settings | {"model": model, "sampling": {"max_response_tokens": 4}})
    generate.run(answers, resume=False)
    assert RunFiles(answers.run_dir).read_metrics()


def test_examples_longer_than_virtual_tokens_leave_are_refused(tiny_llama_folder: Path, tmp_path: Path) -> None:
    data = {"train": write_rows(tmp_path / "rows.jsonl", [{"prompt": "the", "completion": " cat"}])}
    model = {"path": str(tiny_llama_folder), "tuning": PTuningV2(virtual_tokens=4).model_dump(), "device": "cpu"}
    config = SftConfig.model_validate({"run_dir": "r", "model": model, "data": data, "max_tokens": 64})
    with pytest.raises(ValueError, match=r"max_tokens=64 exceeds .* 60 tokens that model\.tuning's 4 virtual tokens"):
        sft.SftInputs(config)
