import json
import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from policies.config import FullTuning, LoraTuning, ModelConfig, Tuning
from policies.loading import load_backbone
from reward.model import RewardModel, last_tokens
from reward.normalization import Normalizer
from reward.scoring import score_sequences
from reward.shared_model import SharedRewardModel, shared_parts
from tests.tiny_models import build_model, randomize

SCALE = Normalizer(mean=0.25, std=2.0, count=3, source="test")
LORA: Tuning = LoraTuning(rank=2, alpha=4)
SEQUENCES = [np.array(ids, dtype=np.int32) for ids in ([1, 9, 8, 7, 6, 2], [1, 5, 2], [1, 2], [1, 30, 40, 50, 2])]


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3", "gpt_neox", "gemma2", "bert"])
def folder(request, tiny_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    if request.param == "bert":
        write_bert(path)
    else:
        build_model(request.param, len(tiny_tokenizer)).save_pretrained(path)
    tiny_tokenizer.save_pretrained(path)
    return path


def write_bert(path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, pad_token_id=0
    )
    BertModel(config).save_pretrained(path)


def new_model(folder, tuning: Tuning = LORA, seed=0, **options):
    return RewardModel.new(ModelConfig(path=str(folder), tuning=tuning, device="cpu", **options), seed=seed)


@torch.no_grad()
def trained(folder, tuning: Tuning = LORA, seed=3):
    """A model whose trained weights show: a fresh adapter changes nothing."""
    model = new_model(folder, tuning)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in model.trainable():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def scores_of(model, token_budget=10_000):
    with torch.no_grad():
        return score_sequences(model, SEQUENCES, token_budget=token_budget)


def test_the_last_token_is_the_last_real_one():
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])

    assert last_tokens(mask).tolist() == [2, 0, 0]


def test_scores_do_not_depend_on_padding_order_or_batch(folder):
    model = trained(folder)

    alone = torch.cat([scores_of_one(model, sequence, padding=0) for sequence in SEQUENCES])

    assert alone.std() > 1e-3
    torch.testing.assert_close(scores_of(model), alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scores_of(model, token_budget=7), alone, rtol=1e-4, atol=1e-5)
    padded = torch.cat([scores_of_one(model, sequence, padding=3) for sequence in SEQUENCES])
    torch.testing.assert_close(padded, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def scores_of_one(model, sequence, padding, pad_id=0):
    ids = torch.tensor([[*sequence.tolist(), *[pad_id] * padding]])
    return model.raw_scores(ids, torch.arange(ids.shape[1]).unsqueeze(0) < len(sequence))


def test_a_decoder_score_does_not_depend_on_the_pad_id(tiny_llama_folder):
    model = trained(tiny_llama_folder)

    # 2 is the end of sequence: a reader that looks for the pad id would stop one token early.
    for pad_id in (2, 77):
        torch.testing.assert_close(
            scores_of_one(model, SEQUENCES[0], 3, pad_id), scores_of_one(model, SEQUENCES[0], 0), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("tuning", [FullTuning(), LORA], ids=["full", "lora"])
def test_transformers_and_peft_load_the_saved_folder_with_the_same_scores(folder, tuning, tmp_path):
    model = trained(folder, tuning)

    model.save(tmp_path / "model", normalizer=SCALE, metadata={"stage": "reward"})

    plain = load_without_this_project(tmp_path / "model", folder, is_adapter=tuning is LORA)
    batch = AutoTokenizer.from_pretrained(tmp_path / "model").pad(
        {"input_ids": [sequence.tolist() for sequence in SEQUENCES]}, return_tensors="pt", padding_side="right"
    )
    with torch.no_grad():
        expected = plain(**batch).logits.squeeze(-1)
    torch.testing.assert_close(scores_of(model), expected, rtol=1e-4, atol=1e-5)
    reloaded = RewardModel.from_folder(str(tmp_path / "model"), device="cpu")
    torch.testing.assert_close(scores_of(reloaded), scores_of(model), rtol=1e-6, atol=1e-6)
    assert Normalizer.load(tmp_path / "model") == SCALE


def load_without_this_project(saved, base, *, is_adapter):
    if not is_adapter:
        return AutoModelForSequenceClassification.from_pretrained(saved).eval()
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    classifier.config.pad_token_id = classifier.config.get_text_config().pad_token_id = 0
    return PeftModel.from_pretrained(classifier, saved).eval()


def test_only_adapter_and_head_train_under_lora(folder):
    model = new_model(folder)

    names = [name for name, _ in model.trainable()]

    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("modules_to_save" in name for name in names)
    score_sequences(model, SEQUENCES, token_budget=100).sum().backward()
    assert {name for name, p in model._model.named_parameters() if p.grad is not None} <= set(names)


def test_a_new_head_has_the_documented_spread_and_the_seed_decides_it(tiny_llama_folder):
    weights = [new_model(tiny_llama_folder, FullTuning(), seed=seed).weights()["score.weight"] for seed in range(8)]
    again = new_model(tiny_llama_folder, FullTuning(), seed=0).weights()["score.weight"]

    torch.testing.assert_close(weights[0], again, rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[1])
    assert torch.cat(weights).std().item() == pytest.approx(1 / math.sqrt(33), rel=0.15)


def test_a_reward_model_trains_on_with_its_own_head(tiny_llama_folder, tmp_path):
    first = trained(tiny_llama_folder, FullTuning())
    first.save(tmp_path / "full", normalizer=SCALE, metadata={})
    adapter = trained(tiny_llama_folder)
    adapter.save(tmp_path / "lora", normalizer=SCALE, metadata={})

    torch.testing.assert_close(scores_of(new_model(tmp_path / "full", FullTuning())), scores_of(first))
    torch.testing.assert_close(scores_of(new_model(tmp_path / "lora")), scores_of(adapter))


def test_a_policy_adapter_is_where_a_reward_adapter_starts(tiny_llama_folder, tmp_path):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    backbone.adapters.add("policy", LoraTuning(rank=3), seed=0)
    randomize(backbone.adapters, "policy", seed=1)
    backbone.adapters.save("policy", tmp_path / "policy", tokenizer=backbone.tokenizer)

    weights = new_model(tmp_path / "policy").weights()

    # Our names carry no adapter name; PEFT's live ones do.
    received = {name.replace(".default", ""): tensor for name, tensor in weights.items() if "lora_" in name}
    expected = backbone.adapters.state("policy")
    assert received.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(received[name], tensor, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"model\.tuning\.kind=full: model\.path holds an adapter"):
        new_model(tmp_path / "policy", FullTuning())


def test_weights_go_back_where_they_came_from(tiny_llama_folder):
    source, target = trained(tiny_llama_folder), new_model(tiny_llama_folder)
    assert not torch.allclose(scores_of(source), scores_of(target))

    target.load_weights({name: tensor.clone() for name, tensor in source.weights().items()})

    torch.testing.assert_close(scores_of(target), scores_of(source), rtol=0, atol=0)


@pytest.fixture
def adapter_folder(tiny_llama_folder, tmp_path):
    trained(tiny_llama_folder).save(tmp_path / "reward", normalizer=SCALE, metadata={})
    return tmp_path / "reward"


def test_on_a_shared_base_the_scores_are_the_same(tiny_llama_folder, adapter_folder):
    backbone = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu"))
    parts = shared_parts(str(adapter_folder))
    assert parts is not None
    assert parts.base_fingerprint == backbone.fingerprint
    assert parts.normalizer == SCALE

    shared = SharedRewardModel(backbone, parts, adapter="reward")

    own = RewardModel.from_folder(str(adapter_folder), device="cpu")
    torch.testing.assert_close(scores_of(shared), scores_of(own), rtol=1e-5, atol=1e-6)
    assert backbone.adapters.active is None


def test_what_has_no_adapter_or_no_recorded_base_cannot_share(tiny_llama_folder, adapter_folder, tmp_path):
    trained(tiny_llama_folder, FullTuning()).save(tmp_path / "full", normalizer=SCALE, metadata={})
    assert shared_parts(str(tmp_path / "full")) is None

    (adapter_folder / "rlhf_metadata.json").unlink()
    assert shared_parts(str(adapter_folder)) is None


def test_a_missing_scale_is_left_to_whoever_needs_one(adapter_folder):
    (adapter_folder / "reward_normalizer.json").unlink()

    parts = shared_parts(str(adapter_folder))

    assert parts is not None
    assert parts.normalizer is None


def test_an_adapter_is_refused_on_a_base_that_changed(tiny_llama_folder, adapter_folder, tmp_path):
    changed = load_backbone(ModelConfig(path=str(tiny_llama_folder), device="cpu")).model
    next(changed.parameters()).data += 1.0
    changed.save_pretrained(tmp_path / "changed")
    file = adapter_folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "changed")}))

    with pytest.raises(ValueError, match="was trained on a base with fingerprint"):
        RewardModel.from_folder(str(adapter_folder), device="cpu")


def test_a_model_that_pads_with_its_end_of_sequence_is_refused(tiny_llama_folder):
    with pytest.raises(ValueError, match=r"model\.pad_token='<eos>'.*set model\.pad_token"):
        new_model(tiny_llama_folder, pad_token="<eos>")


def test_a_language_model_is_no_trained_reward_model(tiny_llama_folder):
    with pytest.raises(ValueError, match="has no trained head with one output; train one with `rlhf reward`"):
        RewardModel.from_folder(str(tiny_llama_folder), device="cpu")


def test_full_tuning_in_bfloat16_is_refused_and_lora_trains_in_float32(tiny_llama_folder):
    with pytest.raises(ValueError, match=r"model\.dtype=bfloat16 cannot train in full"):
        new_model(tiny_llama_folder, FullTuning(), dtype="bfloat16")

    model = new_model(tiny_llama_folder, dtype="bfloat16")
    assert {parameter.dtype for _, parameter in model.trainable()} == {torch.float32}
    assert scores_of(model).dtype == torch.float32


def test_unknown_target_modules_are_named(tiny_llama_folder):
    tuning = LoraTuning(target_modules=("no_such_module",))

    with pytest.raises(ValueError, match=r"model\.tuning\.target_modules=\('no_such_module',\)"):
        new_model(tiny_llama_folder, tuning)


def test_the_context_of_the_backbone_is_known(tiny_llama_folder):
    assert new_model(tiny_llama_folder).context_tokens == 64
