"""Every role and stage on a base in 8 or 4 bits: export, reward model, a whole run of PPO, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from policies.quantization import quantization_of
from reward.model import RewardModel
from reward.normalization import IDENTITY
from rlhf.config import PpoConfig, SftConfig
from rlhf.export import export
from rlhf.roles import RoleHost
from rlhf.runtime.placement import ALL_ROLES
from tests.tiny_models import randomize
from tests.tiny_ppo import metrics_of, ppo_settings, run_ppo

FORMATS = ["int8", "nf4"]


def in_format(format: Any, folder: Path) -> ModelConfig:
    return ModelConfig(path=str(folder), quantization=format, tuning=LoraTuning(rank=2), device="cpu")


@pytest.mark.usefixtures("bitsandbytes")
@pytest.mark.parametrize("format", FORMATS)
def test_an_export_merges_into_what_the_codes_stand_for(format: str, tiny_llama_folder: Path, tmp_path: Path) -> None:
    backbone = load_backbone(in_format(format, tiny_llama_folder))
    backbone.adapters.add("policy", LoraTuning(rank=2), seed=0)
    randomize(backbone.adapters, "policy", seed=1)
    # Rounding alone moves the logits of this random model by up to a hundredth; another weight moves them by tenths.
    export(backbone, "policy", tmp_path / "merged", tolerance=2e-2)
    merged = load_backbone(ModelConfig(path=str(tmp_path / "merged"), device="cpu"))
    assert quantization_of(merged.model) == "none"
    assert backbone.is_quantized, "the original stays as it is"


@pytest.mark.usefixtures("bitsandbytes")
def test_a_reward_adapter_finds_its_format_again(tiny_llama_folder: Path, tmp_path: Path) -> None:
    model = RewardModel.new(in_format("nf4", tiny_llama_folder), seed=0)
    model.save(tmp_path / "reward", normalizer=IDENTITY, metadata={})
    ids, mask = torch.tensor([[5, 6, 7, 2]]), torch.ones(1, 4, dtype=torch.bool)
    again = RewardModel.from_folder(str(tmp_path / "reward"), device="cpu")
    assert torch.equal(again.raw_scores(ids, mask), model.raw_scores(ids, mask))


@pytest.mark.usefixtures("bitsandbytes")
def test_all_roles_of_ppo_share_one_quantized_base(tiny_llama_folder: Path, tmp_path: Path) -> None:
    reward = RewardModel.new(in_format("nf4", tiny_llama_folder), seed=0)
    reward.save(tmp_path / "reward", normalizer=IDENTITY, metadata={})
    settings = ppo_settings(
        tmp_path,
        tiny_llama_folder,
        model={"quantization": "nf4"},
        reward=[{"kind": "model", "name": "proxy", "path": str(tmp_path / "reward"), "device": "cpu"}],
        critic={"start": "reward_model"},
        steps=2,
    )
    config = PpoConfig.model_validate(settings)
    host = RoleHost(config, ALL_ROLES)
    assert set(host._backbone.adapters.names) == {"policy", "critic", "reward-proxy"}  # one base is what it is about
    rows = metrics_of(run_ppo(config))
    assert all(row["policy/first_step_ratio_error"] < 1e-4 for row in rows)
    assert all(row["sync/canary_max_logprob_diff"] < 1e-4 for row in rows)
    assert abs(rows[-1]["objective/kl"]) > 1e-4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "full tuning": (
        {"model": {"tuning": {"kind": "full"}}},
        r"quantization=nf4 with tuning.kind=full.*tuning.kind=lora",
    ),
    "a critic that trains in full": (
        {"critic": {"kind": "model"}},
        r"critic.kind=model: .*critic.kind=adapter or head",
    ),
    "layers that are cut": (
        {"placement": {"kind": "split", "learner": {"workers": 2, "sharding": "full"}}},
        r"sharding=full with model.quantization=nf4: .*sharding=none",
    ),
    "an engine of its own": (
        {"rollout": {"engine": {"kind": "vllm"}}, "placement": {"kind": "split"}},
        r"rollout.engine.kind=vllm: vLLM would sample from other numbers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_train_on_codes_is_refused_by_the_configuration(tmp_path: Path, name: str) -> None:
    change, message = REFUSED[name]
    model = {"quantization": "nf4", **change.get("model", {})}
    with pytest.raises(ValueError, match=message):
        PpoConfig.model_validate(ppo_settings(tmp_path, "m", **{**change, "model": model}))


def test_supervised_stages_refuse_full_tuning_too() -> None:
    settings = {"run_dir": "r", "model": {"path": "m", "quantization": "int8"}, "data": {"train": "t"}}
    with pytest.raises(ValueError, match=r"quantization=int8 with tuning\.kind=full"):
        SftConfig.model_validate(settings)
