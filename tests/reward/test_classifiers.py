"""Backbones whose heads have layers of their own, checkpoints that lack weights, tokenizers that pad with eos."""

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2Model,
    LlamaConfig,
    LlamaForSequenceClassification,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

from policies.config import FullTuning, LoraTuning, ModelConfig
from policies.loading import load_backbone
from reward.model import RewardModel
from reward.normalization import Normalizer
from reward.scoring import score_sequences
from tests.tiny_models import build_tokenizer, spread

SCALE = Normalizer(mean=0.0, std=1.0, count=2, source="test")
SEQUENCES = [np.array(ids, dtype=np.int32) for ids in ([1, 9, 8, 7, 6, 2], [1, 5, 2], [1, 30, 40, 2])]
SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ENCODERS = {
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SHAPE, cls_token_id=1, sep_token_id=2)),
    "deberta_v2": lambda: DebertaV2Model(
        DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
    "roberta": lambda: RobertaModel(RobertaConfig(**SHAPE, max_position_embeddings=70)),
}


def write(folder, model, tokenizer):
    spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request, tiny_tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    return write(tmp_path_factory.mktemp(request.param), ENCODERS[request.param](), tiny_tokenizer)


@torch.no_grad()
def trained(path, tuning):
    model = RewardModel.new(ModelConfig(path=path, tuning=tuning, device="cpu"), seed=0)
    generator = torch.Generator().manual_seed(3)
    for _, parameter in model.trainable():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def scores_of(model):
    return score_sequences(model, SEQUENCES, token_budget=100)


@torch.no_grad()
def plain_scores(model, tokenizer):
    batch = tokenizer.pad({"input_ids": [ids.tolist() for ids in SEQUENCES]}, return_tensors="pt", padding_side="right")
    return model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1)


@pytest.mark.parametrize("tuning", [FullTuning(), LoraTuning(rank=2)], ids=["full", "lora"])
def test_a_head_of_several_layers_is_saved_whole(encoder, tuning, tmp_path, tiny_tokenizer):
    model = trained(encoder, tuning)
    model.save(tmp_path / "model", normalizer=SCALE, metadata={})

    # The layers of the head that no checkpoint holds are drawn anew at each load: two loads, because one may be lucky.
    for seed in (1, 2):
        torch.manual_seed(seed)
        again = RewardModel.from_folder(str(tmp_path / "model"), device="cpu")
        torch.testing.assert_close(scores_of(again), scores_of(model), rtol=1e-5, atol=1e-5)
        plain = _without_this_project(tmp_path / "model", encoder, tuning)
        torch.testing.assert_close(plain_scores(plain, tiny_tokenizer), scores_of(model), rtol=1e-4, atol=1e-5)


def _without_this_project(saved, base, tuning):
    if isinstance(tuning, FullTuning):
        return AutoModelForSequenceClassification.from_pretrained(saved)
    return PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), saved)


def test_peft_finds_the_base_of_a_saved_decoder_by_itself(tiny_llama_folder, tmp_path, tiny_tokenizer):
    model = trained(str(tiny_llama_folder), LoraTuning(rank=2))
    model.save(tmp_path / "model", normalizer=SCALE, metadata={})

    plain = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1)

    plain.config.pad_token_id = tiny_tokenizer.pad_token_id
    torch.testing.assert_close(plain_scores(plain, tiny_tokenizer), scores_of(model), rtol=1e-4, atol=1e-5)


@pytest.fixture
def without_pooler(tmp_path, tiny_tokenizer):
    """A checkpoint of masked language modelling lacks the pooler that the classifier of its architecture reads."""
    return write(tmp_path / "mlm", BertForMaskedLM(BertConfig(**SHAPE)), tiny_tokenizer)


def test_lora_is_refused_where_the_backbone_would_start_from_random_weights(without_pooler):
    with pytest.raises(ValueError, match=r"model\.tuning\.kind=lora: .*lacks weights .*bert\.pooler.*set .*kind=full"):
        RewardModel.new(ModelConfig(path=without_pooler, tuning=LoraTuning(rank=2), device="cpu"), seed=0)


def test_full_tuning_trains_and_saves_what_the_backbone_lacked(without_pooler, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        model = trained(without_pooler, FullTuning())
    assert "lacks weights, which start at random: bert.pooler" in caplog.text

    model.save(tmp_path / "model", normalizer=SCALE, metadata={})
    again = RewardModel.from_folder(str(tmp_path / "model"), device="cpu")
    torch.testing.assert_close(scores_of(again), scores_of(model))


def test_a_trained_model_that_lacks_weights_is_refused(without_pooler, tmp_path):
    trained(without_pooler, FullTuning()).save(tmp_path / "model", normalizer=SCALE, metadata={})
    damaged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    kept = {name: tensor for name, tensor in damaged.state_dict().items() if "pooler" not in name}
    damaged.save_pretrained(tmp_path / "model", state_dict=kept)

    with pytest.raises(ValueError, match=r"lacks weights of its backbone \(bert\.pooler"):
        RewardModel.from_folder(str(tmp_path / "model"), device="cpu")


def test_an_adapter_without_its_head_is_refused(tiny_llama_folder, tmp_path):
    trained(str(tiny_llama_folder), LoraTuning(rank=2)).save(tmp_path / "model", normalizer=SCALE, metadata={})
    file = tmp_path / "model" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "score" not in name}, file)

    with pytest.raises(ValueError, match=r"saved without its head \(score\).*modules_to_save=\['score'\]"):
        RewardModel.from_folder(str(tmp_path / "model"), device="cpu")


def test_the_adapter_of_a_policy_is_no_reward_model(tiny_llama_folder, tmp_path):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    backbone.adapters.add("policy", LoraTuning(rank=2), seed=0)
    backbone.adapters.save("policy", tmp_path / "policy", tokenizer=backbone.tokenizer)

    with pytest.raises(ValueError, match="saved without its head"):
        RewardModel.from_folder(str(tmp_path / "policy"), device="cpu")


def test_a_token_that_the_tokenizer_lacks_can_be_named(tmp_path):
    tokenizer = build_tokenizer()
    shape: dict[str, Any] = SHAPE | {"num_labels": 1}
    path = write(tmp_path / "model", LlamaForSequenceClassification(LlamaConfig(**shape)), tokenizer)
    expected = scores_of(RewardModel.from_folder(path, device="cpu"))
    file = tmp_path / "model" / "tokenizer_config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "pad_token"}))

    with pytest.raises(ValueError, match=r"reward\.pad_token: the tokenizer of .* has none"):
        RewardModel.from_folder(path, device="cpu")
    again = RewardModel.from_folder(path, device="cpu", pad_token="<pad>")
    torch.testing.assert_close(scores_of(again), expected)


def test_where_eos_pads_the_score_is_read_where_transformers_reads_it(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    shape: dict[str, Any] = SHAPE | {"pad_token_id": 2, "num_labels": 1}
    config = LlamaConfig(**shape)
    plain = LlamaForSequenceClassification(config)
    path = write(tmp_path / "model", plain, tokenizer)

    model = RewardModel.from_folder(path, device="cpu")

    expected = plain_scores(plain, tokenizer)
    assert expected.std() > 1e-3
    torch.testing.assert_close(scores_of(model), expected, rtol=1e-4, atol=1e-5)
    alone = torch.cat([scores_alone(plain, sequence) for sequence in SEQUENCES])
    torch.testing.assert_close(scores_of(model), alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def scores_alone(plain, sequence):
    return plain(torch.from_numpy(sequence).long()[None]).logits[:, 0]
