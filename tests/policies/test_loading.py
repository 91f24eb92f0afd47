from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from policies.adapters import AdapterSet
from policies.backbone import Backbone
from policies.config import ArchitectureConfig, FullTuning, LoraTuning, ModelConfig
from policies.loading import load_backbone, policy_adapter, prepare_policy, random_backbone, resolve_device
from policies.sequences import SequenceBatch
from policies.sources import require_model
from policies.tokenization import train_tokenizer
from tests.fixtures_models import ARCHITECTURES
from tests.tiny_models import randomize, spread

SHAPE = ArchitectureConfig(hidden_size=32, layers=1, heads=4, context_tokens=32)


def config(path: Path, **fields: Any) -> ModelConfig:
    return ModelConfig(path=str(path), device="cpu", **fields)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_body_and_output_layer_give_the_models_own_logits(
    architecture: str, backbone_of: Callable[[str], Backbone], batch: SequenceBatch
):
    backbone = backbone_of(architecture)
    expected = backbone.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits

    received = backbone.output_layer(backbone.hidden_states(batch.input_ids, batch.attention_mask))
    without_mask = backbone.output_layer(backbone.hidden_states(batch.input_ids, None, batch.position_ids))

    assert torch.allclose(received[batch.attention_mask], expected[batch.attention_mask], atol=1e-5)
    assert torch.allclose(without_mask[batch.attention_mask], expected[batch.attention_mask], atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_left_padded_rows_are_right_with_their_positions(architecture: str, backbone_of: Callable[[str], Backbone]):
    backbone = backbone_of(architecture)
    alone = backbone.hidden_states(torch.tensor([[5, 6, 7]]), None)

    padded = backbone.hidden_states(
        torch.tensor([[0, 0, 5, 6, 7]]),
        torch.tensor([[False, False, True, True, True]]),
        torch.tensor([[0, 0, 0, 1, 2]]),
    )

    assert torch.allclose(padded[:, 2:], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "fields"),
    [("granite", {"logits_scaling": 4.0}), ("cohere", {"logit_scale": 0.25})],
)
def test_scaled_logits_of_an_architecture_are_scaled(
    model_type: str, fields: dict[str, float], tiny_tokenizer: PreTrainedTokenizerBase
):
    settings = AutoConfig.for_model(
        model_type,
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **fields,
    )
    model = AutoModelForCausalLM.from_config(settings)
    spread(model)
    ids = torch.tensor([[5, 6, 7]])

    backbone = Backbone(model, tiny_tokenizer)

    assert torch.allclose(backbone.output_layer(backbone.hidden_states(ids, None)), model(ids).logits, atol=1e-5)


def test_an_architecture_that_changes_its_logits_in_an_unknown_way_is_refused(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase
):
    model = tiny_model("llama")
    forward = type(model).forward

    def doubled(self: PreTrainedModel, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.logits = output.logits * 2
        return output

    model.forward = MethodType(doubled, model)

    with pytest.raises(ValueError, match=r"LlamaForCausalLM differ from its logits by .* not supported"):
        Backbone(model, tiny_tokenizer)


def test_a_loaded_backbone_is_frozen_and_knows_its_sizes(tiny_llama_folder: Path):
    backbone = load_backbone(config(tiny_llama_folder))

    assert (backbone.hidden_size, backbone.vocabulary_size, backbone.context_tokens) == (32, 300, 64)
    assert backbone.pad_id == 0
    assert backbone.device == torch.device("cpu")
    assert not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())
    assert policy_adapter(backbone) is None


def test_precision_and_attention_follow_the_config(tiny_llama_folder: Path):
    backbone = load_backbone(config(tiny_llama_folder, dtype="bfloat16", attention="eager"))

    assert backbone.model.dtype == torch.bfloat16
    assert backbone.model.config._attn_implementation == "eager"


def test_dropout_is_off_even_in_train_mode(
    tiny_model: Callable[[str], PreTrainedModel], tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
):
    assert tiny_model("gpt2").config.resid_pdrop == 0.1
    tiny_model("gpt2").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)

    model = load_backbone(config(tmp_path)).model.train()

    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tiny_model: Callable[[str], PreTrainedModel]):
    tokenizer = train_tokenizer(["many different words make many tokens " * 3], vocabulary_size=300)
    tokenizer.add_tokens([f"<{i}>" for i in range(40)])

    with pytest.raises(ValueError, match="tokens but the model only 300"):
        Backbone(tiny_model("llama"), tokenizer)


def test_full_tuning_lets_gradients_into_every_weight_once(backbone: Backbone):
    parameters = backbone.trainable(None)

    assert all(parameter.requires_grad for parameter in backbone.model.parameters())
    assert len({id(parameter) for _, parameter in parameters}) == len(parameters)
    assert {name for name, _ in parameters} == set(dict(backbone.model.named_parameters()))


def test_a_body_alone_can_train(backbone: Backbone):
    backbone.trainable(None, body_only=True)

    assert all(parameter.requires_grad for parameter in backbone.model.base_model.parameters())
    assert not backbone.model.lm_head.weight.requires_grad


def test_full_tuning_beside_adapters_is_refused(backbone: Backbone):
    backbone.adapters.add("reward", LoraTuning(), seed=0)

    with pytest.raises(ValueError, match=r"model\.tuning\.kind=full: the model carries the adapters \['reward'\]"):
        backbone.trainable(None)


def test_full_tuning_leaves_weights_in_the_precision_they_are_loaded_in(tiny_llama_folder: Path):
    backbone = load_backbone(config(tiny_llama_folder, dtype="bfloat16"))

    parameters = backbone.trainable(None)

    assert {parameter.dtype for _, parameter in parameters} == {torch.bfloat16}
    assert all(parameter.requires_grad for _, parameter in parameters)


@pytest.mark.parametrize("adapter", ["policy", None])
def test_weights_travel_to_another_backbone(adapter: str | None, tiny_llama_folder: Path):
    source, target = load_backbone(config(tiny_llama_folder)), load_backbone(config(tiny_llama_folder))
    ids = torch.tensor([[5, 6, 7]])
    for seed, backbone in enumerate((source, target)):
        if adapter is None:
            with torch.no_grad():
                next(backbone.model.parameters()).add_(seed)
        else:
            backbone.adapters.add(adapter, LoraTuning(), seed=seed)
            randomize(backbone.adapters, adapter, seed=seed)

    target.load_weights(adapter, {name: tensor.clone() for name, tensor in source.weights(adapter).items()})

    with source.adapters.use(adapter), target.adapters.use(adapter):
        assert torch.equal(source.model(ids).logits, target.model(ids).logits)


def test_a_random_model_depends_on_its_seed_only(tiny_tokenizer: PreTrainedTokenizerBase):
    state = torch.get_rng_state()
    once, again, other = (random_backbone(SHAPE, tiny_tokenizer, seed=seed) for seed in (3, 3, 4))

    assert once.fingerprint == again.fingerprint != other.fingerprint
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_model_has_the_shape_asked_for(tiny_tokenizer: PreTrainedTokenizerBase):
    shape = ArchitectureConfig(hidden_size=48, layers=3, heads=4, key_value_heads=2, context_tokens=40)

    settings = random_backbone(shape, tiny_tokenizer, seed=0).model.config

    assert isinstance(settings, LlamaConfig)
    # 8 / 3 * 48 = 128, a multiple of 32 already.
    assert (settings.intermediate_size, settings.num_hidden_layers, settings.num_key_value_heads) == (128, 3, 2)
    assert (settings.max_position_embeddings, settings.vocab_size, settings.tie_word_embeddings) == (40, 300, True)


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "message"),
    [(3, None, "heads=3 must divide hidden_size=32"), (4, 3, "key_value_heads=3 must divide heads=4")],
)
def test_a_shape_that_does_not_divide_is_refused(
    heads: int, key_value_heads: int | None, message: str, tiny_tokenizer: PreTrainedTokenizerBase
):
    shape = SHAPE.model_copy(update={"heads": heads, "key_value_heads": key_value_heads})

    with pytest.raises(ValueError, match=message):
        random_backbone(shape, tiny_tokenizer, seed=0)


def test_lora_tuning_adds_the_policy_and_full_tuning_does_not(tiny_llama_folder: Path):
    backbone = load_backbone(config(tiny_llama_folder))

    assert prepare_policy(backbone, FullTuning(), seed=0) is None
    assert prepare_policy(backbone, LoraTuning(rank=3), seed=0) == "policy"
    assert policy_adapter(backbone) == "policy"
    assert backbone.adapters.names == ("policy",)


def test_training_continues_a_loaded_adapter_and_never_in_full(tiny_llama_folder: Path, tmp_path: Path):
    source = load_backbone(config(tiny_llama_folder))
    source.adapters.add("sft", LoraTuning(rank=3), seed=0)
    source.adapters.save("sft", tmp_path / "sft", tokenizer=source.tokenizer)
    backbone = load_backbone(config(tmp_path / "sft"))

    assert prepare_policy(backbone, LoraTuning(rank=16), seed=0) == "policy"
    assert backbone.adapters.names == ("policy", "reference")
    with pytest.raises(ValueError, match=r"model\.path holds an adapter"):
        prepare_policy(backbone, FullTuning(), seed=0)


def test_an_adapter_folder_without_tokenizer_takes_that_of_its_base(tiny_llama_folder: Path, tmp_path: Path):
    source = load_backbone(config(tiny_llama_folder))
    source.adapters.add("sft", LoraTuning(), seed=0)
    source.adapters.save("sft", tmp_path / "sft")

    assert load_backbone(config(tmp_path / "sft")).tokenizer.get_vocab() == source.tokenizer.get_vocab()


def test_an_adapter_whose_base_is_gone_is_refused(tiny_model: Callable[[str], PreTrainedModel], tmp_path: Path):
    model = tiny_model("llama")
    adapters = AdapterSet(model)
    adapters.add("sft", LoraTuning(), seed=0)
    model.name_or_path = str(tmp_path / "gone")
    adapters.save("sft", tmp_path / "sft")

    with pytest.raises(ValueError, match=r"base_model_name_or_path \(in .*gone': no such folder"):
        load_backbone(config(tmp_path / "sft"))


def test_a_mistyped_run_is_no_hub_name_where_runs_hold_models_and_a_mirror_of_the_hub_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for model in ("runs/sft/model", "Qwen/one"):
        Path(model).mkdir(parents=True)
        Path(model, "config.json").write_text("{}")

    with pytest.raises(ValueError, match=r"model.path='runs/stf': no such folder; check the path"):
        require_model("runs/stf", field="model.path")
    require_model("Qwen/another", field="model.path")
    require_model("gpt2", field="model.path")


def test_a_path_without_a_model_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")

    for path, reason in (("missing/model", "no such folder"), ("file", "is a file"), ("", "neither config.json nor")):
        with pytest.raises(ValueError, match=rf"^model\.path=[^\n]*{reason}[^\n]*$"):
            load_backbone(config(tmp_path / path))


def test_a_hub_name_that_is_not_served_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"^model\.path='nobody/nothing' is no folder, and the hub[^\n]*$"):
        load_backbone(ModelConfig(path="nobody/nothing"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu():
    with pytest.raises(ValueError, match=r"model\.device=cuda: this process sees no GPU"):
        resolve_device("cuda")
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")


def test_random_weights_are_drawn_on_the_scale_of_the_initialiser(tiny_tokenizer: PreTrainedTokenizerBase):
    weight = next(random_backbone(SHAPE, tiny_tokenizer, seed=0).model.parameters()).detach()

    assert weight[1:].std().item() == pytest.approx(0.02, rel=0.1)
