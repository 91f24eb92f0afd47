"""Reward models that TRL's RewardTrainer has trained, in full and with LoRA, score here as they do in transformers."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from policies.config import ModelConfig
from policies.tokenization import load_tokenizer
from reward.composite import build_reward
from reward.config import ModelSource
from reward.encoding import ExchangeEncoder
from reward.interface import RewardRequest

PAIRS = [("the cat", " sat on the mat", " ran"), ("a dog", " ran over the hill", " is"), ("she", " sang all day", " a")]
REQUESTS = [RewardRequest(prompt, response) for prompt, *responses in PAIRS for response in responses]


@pytest.fixture(scope="module", params=["full", "lora", "eos pads"])
def trl_folder(request, tiny_llama_folder, tmp_path_factory):
    """A model of two optimizer steps, as TRL leaves it."""
    folder = tmp_path_factory.mktemp("trl")
    tokenizer = load_tokenizer_of(tiny_llama_folder)
    if request.param == "eos pads":
        tokenizer.pad_token = tokenizer.eos_token
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["score"])
    trainer = RewardTrainer(
        str(tiny_llama_folder),
        args=RewardConfig(
            output_dir=str(folder / "run"),
            max_steps=2,
            learning_rate=0.1,
            per_device_train_batch_size=3,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]),
        processing_class=tokenizer,
        peft_config=lora if request.param == "lora" else None,
    )
    assert_read_alike(trainer, tokenizer)
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return folder / "model"


def load_tokenizer_of(folder):
    return load_tokenizer(ModelConfig(path=str(folder)))


def assert_read_alike(trainer, tokenizer):
    """What TRL shows a model in training is what we show it."""
    encoder = ExchangeEncoder(tokenizer)
    shown = [row[column] for row in trainer.train_dataset for column in ("chosen_ids", "rejected_ids")]
    assert shown == [encoder.from_text(request.prompt, request.response).tolist() for request in REQUESTS]


@torch.no_grad()
def plain_scores(folder, base):
    """By transformers and PEFT alone, one exchange at a time."""
    tokenizer = load_tokenizer_of(folder)
    if (folder / "adapter_config.json").is_file():
        model = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), str(folder)
        )
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    rows = [ExchangeEncoder(tokenizer).from_text(request.prompt, request.response) for request in REQUESTS]
    return [float(model.eval()(input_ids=torch.from_numpy(row).long()[None]).logits) for row in rows]


@pytest.mark.slow
def test_it_loads_and_scores_as_in_transformers(trl_folder, tiny_llama_folder):
    with pytest.raises(ValueError, match="rlhf normalize-reward"):
        build_reward([ModelSource(path=str(trl_folder))], policy_tokenizer=None)
    expected = plain_scores(trl_folder, tiny_llama_folder)

    output = build_reward([ModelSource(path=str(trl_folder), normalization="none")], policy_tokenizer=None)(REQUESTS)

    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(output.scores, expected, rtol=1e-4, atol=1e-5)
