"""What holds for every tuning method, on architectures with and without biases, grouped heads and tied embeddings."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from policies.adapters import AdapterSet
from policies.backbone import Backbone
from policies.base_identity import base_parameters
from policies.causal import CausalPolicy
from policies.config import (
    BitFitTuning,
    BottleneckTuning,
    Ia3Tuning,
    LoraTuning,
    ModelConfig,
    PromptTuning,
    PTuningV2,
)
from policies.loading import load_backbone, prepare_policy
from rollout.config import CompiledEngineConfig, HfEngineConfig, SamplingConfig
from rollout.engines import build_generator
from rollout.types import Prompt
from tests.tiny_models import ragged_batch, randomize
from tests.tunings import INJECTED, TUNINGS, VIRTUAL

IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
ALL = sorted(TUNINGS)
BASES = ("llama", pytest.param("gpt2", marks=pytest.mark.slow))
"""Llama has grouped heads and no biases; GPT-2 has biases, learned positions and transposed weights."""
ENGINES = {"hf": HfEngineConfig(), "compiled": CompiledEngineConfig(slots=2)}
BY_ENGINE = [
    pytest.param(
        name, engine, marks=() if name in ("ia3", "houlsby", "prefix", "prompt", "mix_and_match") else pytest.mark.slow
    )
    for name in ALL
    for engine in ENGINES
]
MERGEABLE = ("lora", "lora_embeddings", "rslora", "dora", "pissa", "ia3", "bitfit", "head")

# Llama: D 32, intermediate 48, 2 layers, 4 heads of 8, 2 key-value heads, V 300, tied where the folder says so.
_LINEARS = [(32, 32), (32, 16), (32, 16), (32, 32), (32, 48), (32, 48), (48, 32)]
_LORA = 2 * sum(2 * (reads + writes) for reads, writes in _LINEARS)
_HOULSBY = 2 * 2 * (32 * 3 + 3 + 3 * 32 + 32)
PARAMETERS = {
    "lora": _LORA,
    "lora_embeddings": _LORA + 2 * (300 + 32),
    "rslora": _LORA,
    "dora": _LORA + 2 * sum(writes for _, writes in _LINEARS),
    "pissa": _LORA,
    "ia3": 2 * (16 + 16 + 48),
    "houlsby": _HOULSBY,
    "pfeiffer": _HOULSBY // 2,
    "parallel": _HOULSBY // 2,
    "bitfit": 2 * sum(writes for _, writes in _LINEARS),
    "head": 300 * 32,
    "prefix": 3 * 16 + (16 * 5 + 5) + (5 + 1) * 2 * 2 * 16,
    "p_tuning_v2": 3 * 2 * 2 * 16,
    "prompt": 3 * 32,
    "p_tuning_mlp": 3 * 32 + (32 * 5 + 5) + (5 * 5 + 5) + (5 * 32 + 32),
    "p_tuning_lstm": 3 * 32
    + 2 * 4 * (5 * 32 + 5 * 5 + 2 * 5)
    + 2 * 4 * (5 * 10 + 5 * 5 + 2 * 5)
    + (10 * 10 + 10)
    + (10 * 32 + 32),
    "mix_and_match": _HOULSBY // 2 + 2 * 2 * 2 * 3 * 8,
}


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits


def prompt_of(ids: list[int], name: str) -> Prompt:
    return Prompt(id=name, text=name, token_ids=np.array(ids, dtype=np.int32))


def with_adapter(model: PreTrainedModel, name: str) -> AdapterSet:
    adapters = AdapterSet(model.requires_grad_(False))
    adapters.add("policy", TUNINGS[name], seed=0)
    return adapters


@pytest.fixture
def llama(tiny_llama_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_llama_folder).eval().requires_grad_(False)


@pytest.mark.parametrize("name", ALL)
def test_as_many_parameters_train_as_the_formula_says(name: str, tiny_model: Callable[[str], PreTrainedModel]):
    trained = with_adapter(tiny_model("llama"), name).trainable("policy")

    assert sum(parameter.numel() for _, parameter in trained) == PARAMETERS[name]


@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("name", ALL)
def test_switched_off_it_is_the_base_and_switched_on_when_new_it_is_too_but_for_virtual_tokens(
    name: str, architecture: str, tiny_model: Callable[[str], PreTrainedModel]
):
    base = logits(tiny_model(architecture))
    adapters = with_adapter(tiny_model(architecture), name)

    with adapters.use("policy"):
        fresh = logits(adapters.model)
    assert torch.equal(logits(adapters.model), base)
    assert torch.allclose(fresh, base, atol=1e-4) == (name in INJECTED)
    randomize(adapters, "policy", seed=1)
    with adapters.use("policy"):
        assert not torch.allclose(logits(adapters.model), base, atol=1e-2)
    assert torch.equal(logits(adapters.model), base)


@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_what_trains_and_nothing_else(
    name: str, architecture: str, tiny_model: Callable[[str], PreTrainedModel]
):
    adapters = with_adapter(tiny_model(architecture), name)
    adapters.add("critic", TUNINGS[name], seed=1)
    randomize(adapters, "policy", seed=1)
    trained = adapters.trainable("policy")

    with adapters.use("policy"):
        logits(adapters.model).square().mean().backward()

    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for _, parameter in trained)
    moved = {id(parameter) for _, parameter in trained}
    assert all(parameter.grad is None for _, parameter in base_parameters(adapters.model))
    for other in (*adapters.parameters("critic"), *adapters.parameters("policy")):
        assert id(other[1]) in moved or other[1].grad is None, other[0]


@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("name", ALL)
def test_what_was_saved_loads_equal_here_and_in_peft_alone(
    name: str, architecture: str, tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path
):
    tiny_model(architecture).save_pretrained(tmp_path / "base")
    adapters = with_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval(), name)
    randomize(adapters, "policy", seed=1)
    with adapters.use("policy"), torch.no_grad():
        expected = logits(adapters.model)
    adapters.save("policy", tmp_path / "saved")

    fresh = AdapterSet(AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval())
    fresh.load("mine", tmp_path / "saved")
    with fresh.use("mine"), torch.no_grad():
        assert torch.allclose(logits(fresh.model), expected, atol=1e-5)
    importlib.import_module("policies.tuners.methods")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    received = logits(PeftModel.from_pretrained(base, tmp_path / "saved").eval())
    assert torch.allclose(received[:, -IDS.shape[1] :], expected, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_a_copy_and_a_saved_copy_go_on_training_as_the_original_does(name: str, llama: PreTrainedModel, tmp_path: Path):
    adapters = with_adapter(llama, name)
    randomize(adapters, "policy", seed=1)
    adapters.copy("policy", "twin")
    adapters.save("policy", tmp_path / "saved")
    adapters.load("loaded", tmp_path / "saved")

    states = []
    for one in ("policy", "twin", "loaded"):
        with adapters.use(one), torch.no_grad():
            states.append(logits(adapters.model))
    assert torch.equal(states[0], states[1])
    assert torch.allclose(states[0], states[2], atol=1e-5)
    keeps_encoder = name not in ("prefix", "p_tuning_mlp", "p_tuning_lstm")
    assert (adapters.state("loaded").keys() == adapters.state("policy").keys()) == keeps_encoder


@pytest.mark.parametrize(("name", "engine"), BY_ENGINE)
def test_an_engine_reports_the_log_probs_of_the_learners_pass_for_ragged_prompts(
    name: str, engine: str, tiny_llama_folder: Path
):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    prepare_policy(backbone, TUNINGS[name], seed=0)
    randomize(backbone.adapters, "policy", seed=1)
    generator = build_generator(
        backbone, "policy", SamplingConfig(max_response_tokens=6, temperature=0.8), ENGINES[engine]
    )
    prompts = [prompt_of([5, 6, 7], "a"), prompt_of([9], "b"), prompt_of([4, 8, 11, 12, 13], "c")]

    done = generator.generate(prompts, [0, 0, 0], seed=0, step=0)

    policy = CausalPolicy(backbone, adapter="policy", temperature=0.8)
    expected = generator.logprobs([prompt.token_ids for prompt in prompts], [one.token_ids for one in done])
    for one, own in zip(done, expected, strict=True):
        assert one.logprobs == pytest.approx(own, abs=1e-4)
    with torch.no_grad():
        batch = ragged_batch()
        together = policy.logprobs(batch).logprobs
        alone = [policy.logprobs(ragged_batch((row,))).logprobs[0] for row in range(3)]
    for row, single in enumerate(alone):
        assert torch.allclose(together[row, : len(single)], single, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_on_a_bfloat16_base_adapters_stay_float32_and_states_bfloat16(name: str, tiny_llama_folder: Path):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu", dtype="bfloat16"))
    prepare_policy(backbone, TUNINGS[name], seed=0)
    policy = CausalPolicy(backbone, adapter="policy", temperature=1.0)
    parameters = policy.trainable()

    assert policy.states(ragged_batch()).dtype == torch.bfloat16
    policy.logprobs(ragged_batch()).logprobs.sum().backward()
    assert {parameter.dtype for _, parameter in parameters} == {torch.float32}
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for _, parameter in parameters)


@pytest.mark.parametrize("architecture", BASES)
@pytest.mark.parametrize("name", MERGEABLE)
def test_what_can_be_merged_gives_a_plain_model_with_its_logits(
    name: str, architecture: str, tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path
):
    if (name, architecture) in (("bitfit", "llama"), ("lora_embeddings", "gpt2")):
        pytest.skip("no biases, or one embedding for both ends: the refusals have tests of their own")
    adapters = with_adapter(tiny_model(architecture), name)
    randomize(adapters, "policy", seed=1)
    with adapters.use("policy"), torch.no_grad():
        expected = logits(adapters.model)

    adapters.merged_model("policy").save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()

    assert torch.allclose(logits(reloaded), expected, atol=1e-3)
    with adapters.use("policy"), torch.no_grad():
        assert torch.equal(logits(adapters.model), expected)


@pytest.mark.parametrize("name", [*sorted({*ALL} - {*MERGEABLE}), "bitfit"])
def test_what_no_weight_can_hold_is_not_merged(name: str, tiny_model: Callable[[str], PreTrainedModel]):
    with pytest.raises(ValueError, match=r"adapter 'policy' \(.*\) cannot be merged: .*keep its folder"):
        with_adapter(tiny_model("llama"), name).merged_model("policy")


def test_an_adapter_of_an_embedding_that_is_the_output_layer_too_leaves_the_output_alone(
    tiny_model: Callable[[str], PreTrainedModel],
):
    adapters = with_adapter(tiny_model("qwen3"), "lora_embeddings")
    randomize(adapters, "policy", seed=1)
    state = adapters.state("policy")
    key = "base_model.model.model.embed_tokens.lora_embedding_"
    embedding: Any = adapters.model.get_input_embeddings()
    with adapters.use("policy"), torch.no_grad():
        expected = logits(adapters.model)
        delta = 16.0 * (state[f"{key}B"] @ state[f"{key}A"]).T[IDS]
        assert torch.allclose(embedding(IDS), embedding.base_layer(IDS) + delta, atol=1e-5)
    # Merged, the output layer would change with it.
    with adapters.merged("policy"):
        assert torch.equal(logits(adapters.model), expected)
    with pytest.raises(ValueError, match=r"cannot be merged: the embedding that it adapts is the output layer, too"):
        adapters.merged_model("policy")


def test_an_embedding_of_its_own_is_merged_for_decoding_and_comes_back(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = with_adapter(tiny_model("llama"), "lora_embeddings")
    base = logits(adapters.model)
    randomize(adapters, "policy", seed=1)
    with adapters.use("policy"), torch.no_grad():
        expected = logits(adapters.model)
    with adapters.merged("policy"):
        assert torch.allclose(logits(adapters.model), expected, atol=1e-3)
    assert torch.equal(logits(adapters.model), base)


@pytest.mark.parametrize("variant", ["dora", "pissa"])
def test_embeddings_have_plain_updates(variant: str):
    with pytest.raises(ValueError, match=f"embeddings=true with variant={variant}: embeddings are adapted by plain"):
        LoraTuning.model_validate({"embeddings": True, "variant": variant})


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_take_their_part_of_the_context_and_of_padding_free_passes(name: str, tiny_llama_folder: Path):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    assert backbone.packs_rows
    prepare_policy(backbone, TUNINGS[name], seed=0)

    assert backbone.context_tokens == 64 - 3
    assert not backbone.packs_rows
    generator = build_generator(backbone, "policy", SamplingConfig(max_response_tokens=6))
    with pytest.raises(ValueError, match=r"prompt 'long' has 56 tokens; .*61 tokens, of which its 3 virtual tokens"):
        generator.generate([prompt_of([5] * 56, "long")], [0], seed=0, step=0)


def test_more_virtual_tokens_than_context_are_refused(tiny_model: Callable[[str], PreTrainedModel]):
    with pytest.raises(ValueError, match=r"virtual_tokens=64 leave nothing of the model's context of 64"):
        AdapterSet(tiny_model("llama")).add("policy", PTuningV2(virtual_tokens=64), seed=0)


@pytest.mark.parametrize("name", VIRTUAL)
def test_virtual_tokens_before_sliding_windows_are_refused(name: str, tiny_model: Callable[[str], PreTrainedModel]):
    with pytest.raises(ValueError, match=r"kind=.*Gemma2ForCausalLM cannot have virtual tokens.*sliding"):
        with_adapter(tiny_model("gemma2"), name)


def test_prompt_tuning_starts_from_the_embeddings_of_a_text(tiny_llama_folder: Path):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    ids = backbone.tokenizer("the cat", add_special_tokens=False)["input_ids"]
    backbone.adapters.add("policy", PromptTuning(virtual_tokens=len(ids) + 1, initial_text="the cat"), seed=0)

    (learned,) = backbone.adapters.state("policy").values()
    assert torch.equal(learned, backbone.model.get_input_embeddings()(torch.tensor([*ids, ids[0]])))


def test_a_soft_prompt_of_words_is_those_words_before_the_text(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = AdapterSet(tiny_model("gpt2"))
    adapters.add("policy", PromptTuning(virtual_tokens=2), seed=0)
    words = adapters.model.get_input_embeddings()(torch.tensor([20, 21]))
    adapters.load_state("policy", {"prompt_embeddings": words})

    with adapters.use("policy"), torch.no_grad():
        received = logits(adapters.model)
    expected = logits(adapters.model, torch.tensor([[20, 21, *IDS[0].tolist()]]))[:, 2:]
    assert torch.allclose(received, expected, atol=1e-5)


def test_ia3_scales_keys_values_and_inner_activations(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = with_adapter(tiny_model("llama"), "ia3")
    names = {name.split(".")[-2] for name, _ in adapters.parameters("policy")}
    assert names == {"k_proj", "v_proj", "down_proj"}


def test_a_serial_adapter_adds_its_network_of_the_sublayers_output(tiny_model: Callable[[str], PreTrainedModel]):
    model = tiny_model("llama")
    adapters = AdapterSet(model.requires_grad_(False))
    adapters.add("policy", BottleneckTuning(size=1, placement="pfeiffer", scale=0.5), seed=0)
    randomize(adapters, "policy", seed=1)
    layer: Any = model.get_submodule("model.layers.0.mlp.down_proj")
    x = torch.randn(4, 48, generator=torch.Generator().manual_seed(0))
    first = {key: tensor for key, tensor in adapters.state("policy").items() if "layers.0." in key}
    state = {key.rpartition("down_proj.")[2]: tensor for key, tensor in first.items()}

    y = x @ layer.get_base_layer().weight.T
    inner = torch.relu(y @ state["bottleneck_down.weight"].T + state["bottleneck_down.bias"])
    expected = y + 0.5 * (inner @ state["bottleneck_up.weight"].T + state["bottleneck_up.bias"])
    with adapters.use("policy"), torch.no_grad():
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_layers_choose_where_a_method_goes_in(tiny_model: Callable[[str], PreTrainedModel]):
    for tuning in (
        LoraTuning(rank=2, layers=(1,)),
        LoraTuning(rank=2, target_modules=("q_proj",), layers=(1,)),
        Ia3Tuning(layers=(1,)),
        BottleneckTuning(size=2, layers=(1,)),
        BitFitTuning(add_missing=True, layers=(1,)),
    ):
        adapters = AdapterSet(tiny_model("llama"))
        adapters.add("policy", tuning, seed=0)
        adapters.add("critic", tuning, seed=1)
        for name in ("policy", "critic"):
            names = [key for key, _ in adapters.parameters(name)]
            assert names, tuning
            assert all(".layers.1." in key for key in names), tuning
    with pytest.raises(ValueError, match=r"model\.tuning\.layers=\[2\]: the model has layers 0 to 1, not 2"):
        AdapterSet(tiny_model("llama")).add("policy", LoraTuning(layers=(2,)), seed=0)


def test_bitfit_refuses_a_model_without_biases_and_takes_all_of_one_that_has_them(
    tiny_model: Callable[[str], PreTrainedModel],
):
    with pytest.raises(ValueError, match=r"kind=bitfit: LlamaForCausalLM has no bias terms.*add_missing=true"):
        AdapterSet(tiny_model("llama")).add("policy", BitFitTuning(), seed=0)
    adapters = AdapterSet(tiny_model("gpt2"))
    adapters.add("policy", BitFitTuning(), seed=0)
    biases = [parameter.numel() for key, parameter in base_parameters(adapters.model) if key.endswith(".bias")]
    assert sum(parameter.numel() for _, parameter in adapters.parameters("policy")) == sum(biases)


def test_architectures_whose_sublayers_are_unknown_are_named_errors(tiny_model: Callable[[str], PreTrainedModel]):
    model = tiny_model("llama")
    vars(model.config)["model_type"] = "unheard_of"
    with pytest.raises(ValueError, match=r"kind=ia3: PEFT does not know where to scale unheard_of"):
        AdapterSet(model).add("policy", Ia3Tuning(), seed=0)
    for layer in model.model.layers:
        layer.other, layer.mlp = layer.mlp, None
    with pytest.raises(ValueError, match=r"kind=bottleneck: LlamaForCausalLM has none of the modules mlp"):
        AdapterSet(model).add("policy", BottleneckTuning(placement="parallel"), seed=0)


def test_two_methods_of_layers_do_not_share_a_model(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = with_adapter(tiny_model("llama"), "lora")
    with pytest.raises(ValueError, match=r"'critic' is of type IA3, but the model carries 'policy' of type LORA"):
        adapters.add("critic", Ia3Tuning(), seed=0)
    adapters.add("soft", PTuningV2(virtual_tokens=2), seed=0)
    assert adapters.names == ("policy", "soft")


def test_an_adapter_of_another_method_than_the_configurations_is_refused(tiny_llama_folder: Path, tmp_path: Path):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    backbone.adapters.add("policy", Ia3Tuning(), seed=0)
    backbone.adapters.save("policy", tmp_path)
    again = load_backbone(ModelConfig(path=str(tmp_path), device="cpu"))
    assert again.adapters.names == ("policy", "reference")
    with pytest.raises(ValueError, match=r"kind=lora: model\.path holds an adapter of PEFT's type IA3, not LORA"):
        prepare_policy(again, LoraTuning(), seed=0)


def test_pissa_starts_from_the_largest_singular_values_and_keeps_the_base(tiny_model: Callable[[str], PreTrainedModel]):
    adapters = with_adapter(tiny_model("llama"), "pissa")
    weight = tiny_model("llama").get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert torch.equal(adapters.model.get_parameter("model.layers.0.self_attn.q_proj.base_layer.weight"), weight)
    state, key = adapters.state("policy"), "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    scale = 32.0 / 2
    left, values, right = torch.linalg.svd(weight)
    principal = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    assert torch.allclose(scale * state[f"{key}B.weight"] @ state[f"{key}A.weight"], principal, atol=1e-5)
    assert torch.equal(state[f"{key}B.start.weight"], -state[f"{key}B.weight"])


def test_a_backbone_with_virtual_tokens_does_not_checkpoint_activations(tiny_llama_folder: Path):
    backbone: Backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    prepare_policy(backbone, TUNINGS["prefix"], seed=0)
    with pytest.raises(ValueError, match=r"activation_checkpointing=true: .*virtual"):
        backbone.checkpoint_activations()
