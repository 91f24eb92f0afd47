import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from policies.adapters import AdapterSet
from policies.backbone import Backbone
from policies.base_identity import base_fingerprint
from policies.checkpoint import load_metadata
from policies.config import LoraTuning, ModelConfig
from policies.loading import load_backbone
from tests.fixtures_models import ARCHITECTURES
from tests.tiny_models import randomize

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
SMALL = LoraTuning(rank=2, alpha=8)
LARGE = LoraTuning(rank=5, alpha=5)


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=IDS, use_cache=False).logits


@pytest.fixture
def adapters(tiny_model: Callable[[str], PreTrainedModel]) -> AdapterSet:
    """A Llama with two adapters of different ranks and random weights."""
    return with_two_adapters(tiny_model("llama"))


def with_two_adapters(model: PreTrainedModel) -> AdapterSet:
    adapters = AdapterSet(model.requires_grad_(False))
    for seed, (name, tuning) in enumerate([("policy", SMALL), ("critic", LARGE)]):
        adapters.add(name, tuning, seed=seed)
        randomize(adapters, name, seed=seed)
    return adapters


@pytest.fixture
def llama(tiny_llama_folder: Path) -> PreTrainedModel:
    """The saved Llama, loaded afresh, as adapters of it expect it."""
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval().requires_grad_(False)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_adapters_off_is_bitwise_the_base(architecture: str, tiny_model: Callable[[str], PreTrainedModel]):
    model = tiny_model(architecture)
    expected = logits(model)
    adapters = with_two_adapters(model)

    assert torch.equal(logits(model), expected)
    with adapters.use("policy"):
        changed = logits(model)
        with adapters.use(None):
            assert torch.equal(logits(model), expected)
        assert torch.equal(logits(model), changed)
    assert not torch.allclose(changed, expected, atol=1e-2)
    assert torch.equal(logits(model), expected)


def test_a_new_adapter_changes_nothing_and_depends_on_its_seed_only(tiny_model: Callable[[str], PreTrainedModel]):
    def first_matrices(seed: int) -> dict[str, Tensor]:
        adapters = AdapterSet(tiny_model("llama"))
        torch.manual_seed(torch.seed())
        adapters.add("policy", SMALL, seed=seed)
        with adapters.use("policy"):
            assert torch.equal(logits(adapters.model), logits(tiny_model("llama")))
        return adapters.state("policy")

    once, again, other = first_matrices(3), first_matrices(3), first_matrices(4)

    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not all(torch.equal(once[name], other[name]) for name in once)


def test_adapters_arrive_frozen(adapters: AdapterSet):
    adapters.copy("policy", "reference")

    assert not any(parameter.requires_grad for parameter in adapters.model.parameters())


def test_adding_an_adapter_leaves_the_global_random_state_alone(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = AdapterSet(tiny_model("llama"))
    before = torch.get_rng_state()

    adapters.add("policy", SMALL, seed=0)

    assert torch.equal(torch.get_rng_state(), before)


def test_each_adapter_answers_with_its_own_weights(adapters: AdapterSet):
    with adapters.use("policy"):
        policy = logits(adapters.model)
    with adapters.use("critic"):
        critic = logits(adapters.model)

    assert not torch.allclose(policy, critic, atol=1e-2)


def test_what_was_active_is_restored_when_a_block_fails(adapters: AdapterSet):
    with adapters.use("critic"):
        with pytest.raises(KeyError), adapters.use("policy"):
            raise KeyError
        assert adapters.active == "critic"
    assert adapters.active is None


def test_switching_never_changes_what_requires_gradients(adapters: AdapterSet):
    adapters.trainable("policy")
    before = [parameter.requires_grad for parameter in adapters.model.parameters()]

    for name in ("critic", None, "policy"):
        with adapters.use(name):
            assert [parameter.requires_grad for parameter in adapters.model.parameters()] == before
    adapters.add("reward", SMALL, seed=9)

    trains = {id(parameter) for parameter in adapters.model.parameters() if parameter.requires_grad}
    assert trains == {id(parameter) for _, parameter in adapters.parameters("policy")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradients_reach_the_active_trainable_adapter_and_nothing_else(
    architecture: str, tiny_model: Callable[[str], PreTrainedModel]
):
    adapters = with_two_adapters(tiny_model(architecture))
    adapters.trainable("policy")
    adapters.trainable("critic")

    with adapters.use("policy"):
        logits(adapters.model).square().mean().backward()

    policy = {id(parameter) for _, parameter in adapters.parameters("policy")}
    for name, parameter in adapters.model.named_parameters():
        if id(parameter) in policy:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


def test_a_frozen_adapter_receives_no_gradient(adapters: AdapterSet):
    adapters.trainable("policy")
    adapters.freeze("policy")

    with adapters.use("policy"):
        assert not logits(adapters.model).requires_grad


def test_an_adapter_does_not_train_on_a_base_that_trains(adapters: AdapterSet):
    next(adapters.model.parameters()).requires_grad = True

    with pytest.raises(ValueError, match="'policy' cannot train on a base that trains"):
        adapters.trainable("policy")


def test_a_copy_starts_equal_and_goes_its_own_way(adapters: AdapterSet):
    adapters.copy("policy", "reference")
    with adapters.use("policy"):
        before = logits(adapters.model)
    randomize(adapters, "policy", seed=7)

    with adapters.use("reference"):
        assert torch.equal(logits(adapters.model), before)
    with adapters.use("policy"):
        assert not torch.allclose(logits(adapters.model), before, atol=1e-2)


def test_state_is_free_of_the_adapters_name_and_loads_into_another(adapters: AdapterSet):
    state = {name: tensor.clone() for name, tensor in adapters.state("policy").items()}
    adapters.add("other", SMALL, seed=5)

    adapters.load_state("other", state)

    assert all("policy" not in name for name in state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in adapters.state("other").items())


def test_state_of_another_shape_or_with_other_names_is_refused_and_changes_nothing(adapters: AdapterSet):
    before = {name: tensor.clone() for name, tensor in adapters.state("policy").items()}
    name = next(iter(before))

    with pytest.raises(ValueError, match=r"has shape \(5, 32\); \(2, 32\) is needed"):
        adapters.load_state("policy", adapters.state("critic"))
    with pytest.raises(ValueError, match=r"missing .*lora_A"):
        adapters.load_state("policy", {key: tensor for key, tensor in before.items() if key != name})
    with pytest.raises(ValueError, match=r"unknown \['more'\]"):
        adapters.load_state("policy", before | {"more": torch.zeros(1)})

    assert all(torch.equal(tensor, before[key]) for key, tensor in adapters.state("policy").items())


def test_unknown_and_taken_names_are_refused(adapters: AdapterSet):
    with pytest.raises(ValueError, match="no adapter 'actor'; there are"), adapters.use("actor"):
        pass
    with pytest.raises(ValueError, match="'policy' exists already"):
        adapters.add("policy", SMALL, seed=0)


def test_target_modules_that_match_nothing_are_refused_by_the_name_of_the_setting(
    tiny_model: Callable[[str], PreTrainedModel],
):
    adapters = AdapterSet(tiny_model("llama"))

    with pytest.raises(ValueError, match=r"model\.tuning\.target_modules=.*c_attn"):
        adapters.add("policy", LoraTuning(target_modules=("c_attn",)), seed=0)


def test_only_the_named_modules_are_adapted(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = AdapterSet(tiny_model("llama"))

    adapters.add("policy", LoraTuning(target_modules=("q_proj", "v_proj")), seed=0)

    assert {name.split(".")[-3] for name, _ in adapters.parameters("policy")} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merging_for_a_block_gives_the_same_logits_and_returns_the_very_same_base(
    architecture: str, tiny_model: Callable[[str], PreTrainedModel]
):
    adapters = with_two_adapters(tiny_model(architecture))
    base = logits(adapters.model)
    with adapters.use("policy"):
        expected = logits(adapters.model)

    with adapters.merged("policy"):
        assert torch.allclose(logits(adapters.model), expected, atol=1e-3)
        with pytest.raises(RuntimeError, match="merged into the base"), adapters.use("critic"):
            pass

    assert torch.equal(logits(adapters.model), base)
    with adapters.merged(None):
        assert torch.equal(logits(adapters.model), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_is_plain_and_has_the_adapters_logits(
    architecture: str, tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path
):
    adapters = with_two_adapters(tiny_model(architecture))
    with adapters.use("critic"):
        expected = logits(adapters.model)

    adapters.merged_model("critic").save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    assert torch.allclose(logits(reloaded), expected, atol=1e-3)
    assert set(dict(reloaded.named_parameters())) == set(dict(tiny_model(architecture).named_parameters()))
    with adapters.use("critic"):
        assert torch.equal(logits(adapters.model), expected)


def test_a_saved_adapter_loads_equal(llama: PreTrainedModel, tiny_llama_folder: Path, tmp_path: Path):
    adapters = with_two_adapters(llama)
    with adapters.use("critic"):
        expected = logits(llama)
    adapters.save("critic", tmp_path / "critic", metadata={"stage": "test"})

    fresh = AdapterSet(AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval())
    metadata = fresh.load("mine", tmp_path / "critic")

    with fresh.use("mine"):
        assert torch.equal(logits(fresh.model), expected)
    assert metadata == load_metadata(tmp_path / "critic")
    about = {"base_fingerprint": base_fingerprint(llama), "base_quantization": "none"}
    assert metadata == {"stage": "test"} | about


def test_a_saved_adapter_is_one_that_peft_loads_by_itself(
    llama: PreTrainedModel, tiny_llama_folder: Path, tmp_path: Path
):
    adapters = with_two_adapters(llama)
    with adapters.use("policy"):
        expected = logits(llama)
    adapters.save("policy", tmp_path / "policy")

    config = json.loads((tmp_path / "policy" / "adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"])

    assert torch.equal(logits(PeftModel.from_pretrained(model, tmp_path / "policy").eval()), expected)
    assert config["base_model_name_or_path"] == str(tiny_llama_folder)


def test_saving_twice_writes_the_same_bytes(llama: PreTrainedModel, tmp_path: Path):
    adapters = with_two_adapters(llama)
    adapters.save("policy", tmp_path / "a")
    adapters.save("policy", tmp_path / "b")

    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "rlhf_metadata.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_an_adapter_that_peft_wrote_loads_without_metadata(
    llama: PreTrainedModel, tiny_llama_folder: Path, tmp_path: Path
):
    config = LoraConfig(
        task_type="CAUSAL_LM", r=3, use_rslora=True, init_lora_weights=False, target_modules="all-linear"
    )
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama_folder), config).eval()
    theirs.save_pretrained(str(tmp_path))

    adapters = AdapterSet(llama)
    metadata = adapters.load("policy", tmp_path)

    with adapters.use("policy"):
        assert torch.allclose(logits(llama), logits(theirs), atol=1e-5)
    assert metadata == {}


def test_the_adapter_of_a_classifier_loads_onto_the_causal_base_without_its_head(
    llama: PreTrainedModel, tiny_llama_folder: Path, tmp_path: Path
):
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_llama_folder, num_labels=1)
    config = LoraConfig(task_type="SEQ_CLS", r=3, init_lora_weights=False, target_modules="all-linear")
    get_peft_model(classifier, config).save_pretrained(str(tmp_path))  # puts the layers into `classifier` itself

    adapters = AdapterSet(llama)
    adapters.load("reward", tmp_path)

    with adapters.use("reward"):
        received = llama.base_model(input_ids=IDS).last_hidden_state
    expected = classifier.eval().base_model(input_ids=IDS).last_hidden_state
    assert torch.allclose(received, expected, atol=1e-5)
    assert base_fingerprint(classifier) == base_fingerprint(llama)


def test_an_adapter_that_replaces_whole_modules_is_refused(
    llama: PreTrainedModel, tiny_llama_folder: Path, tmp_path: Path
):
    config = LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=["q_proj"], modules_to_save=["norm"])
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama_folder), config).save_pretrained(str(tmp_path))

    with pytest.raises(ValueError, match=r"modules_to_save=\['norm'\]"):
        AdapterSet(llama).load("policy", tmp_path)


def test_an_adapter_of_another_base_is_refused(llama: PreTrainedModel, tmp_path: Path):
    with_two_adapters(llama).save("policy", tmp_path / "policy")
    other = AutoModelForCausalLM.from_pretrained(str(llama.name_or_path))
    with torch.no_grad():
        next(other.parameters()).mul_(1.05)

    with pytest.raises(ValueError, match="was trained on a base with fingerprint"):
        AdapterSet(other).load("policy", tmp_path / "policy")


def test_the_fingerprint_ignores_precision_and_adapters_but_not_weights(
    llama: PreTrainedModel, tiny_llama_folder: Path
):
    plain = base_fingerprint(llama)
    half = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.bfloat16)

    assert base_fingerprint(half) == plain
    with_two_adapters(llama)
    assert base_fingerprint(llama) == plain
    with torch.no_grad():
        llama.get_parameter("model.layers.1.mlp.down_proj.base_layer.weight").mul_(1.05)
    assert base_fingerprint(llama) != plain


def test_adapters_stay_float32_on_a_bfloat16_base(tiny_llama_folder: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder, dtype=torch.bfloat16)
    adapters = AdapterSet(model)

    adapters.add("policy", SMALL, seed=0)

    assert {parameter.dtype for _, parameter in adapters.parameters("policy")} == {torch.float32}
    with adapters.use("policy"):
        assert logits(model).dtype == torch.bfloat16


def test_an_adapter_folder_gives_a_policy_and_a_frozen_reference(llama: PreTrainedModel, tmp_path: Path):
    source = with_two_adapters(llama)
    source.save("policy", tmp_path / "sft")
    with source.use("policy"):
        expected = logits(llama)

    backbone = load_backbone(ModelConfig(path=str(tmp_path / "sft")))

    assert backbone.adapters.names == ("policy", "reference")
    train_one_step(backbone)
    with backbone.adapters.use("reference"):
        assert torch.equal(logits(backbone.model), expected)
    with backbone.adapters.use("policy"):
        assert not torch.allclose(logits(backbone.model), expected, atol=1e-3)
    assert backbone.fingerprint == base_fingerprint(llama)


def train_one_step(backbone: Backbone) -> None:
    optimizer = torch.optim.AdamW([parameter for _, parameter in backbone.trainable("policy")], lr=0.1)
    with backbone.adapters.use("policy"):
        logits(backbone.model).square().mean().backward()
    optimizer.step()
