"""Label log-probabilities of the cloze classifier: by hand from the library's logits, and whatever the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from policies.causal import CausalPolicy
from policies.tokenization import decode
from rlhf.classification.cloze import ClozeModel
from rlhf.classification.head import HeadModel
from rlhf.classification.predicting import predict, view_logprobs
from rlhf.classification.prompts import build_prompts
from rlhf.classification.texts import LabelledText
from rlhf.config.classify import ClozeMethod

LABELS = ["no", "yes"]
WORDS = {"no": ["bird"], "yes": ["and", "to"]}
WRITTEN = {"kind": "written", "templates": ["{text} is {answer}"], "verbalizer": {"kind": "words", "words": WORDS}}


def method(prompts: dict[str, Any] | None = None, **settings: Any) -> ClozeMethod:
    return ClozeMethod.model_validate({"kind": "cloze", "prompts": prompts or WRITTEN, **settings})


def build(policy: CausalPolicy, config: ClozeMethod, texts: list[LabelledText]) -> ClozeModel:
    prompts = build_prompts(config.prompts, policy, texts, LABELS, seed=3)
    return ClozeModel(policy, prompts, config, shown=texts, seed=3)


def next_token(folder: Path, text: str) -> torch.Tensor:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits[0, -1].double().log_softmax(-1)


def word(folder: Path, text: str) -> int:
    (token,) = AutoTokenizer.from_pretrained(folder)(f" {text}", add_special_tokens=False)["input_ids"]
    return token


def test_a_label_has_the_softmax_of_its_words_mean_log_prob(
    policy: CausalPolicy, texts: list[LabelledText], tiny_llama_folder: Path
) -> None:
    found = predict(build(policy, method(), texts), texts, ensemble="log_probs", micro_batch_tokens=64)
    logprobs = next_token(tiny_llama_folder, "a cat sat is")
    ids = {name: word(tiny_llama_folder, name) for name in ("bird", "and", "to")}
    scores = torch.stack([logprobs[ids["bird"]], (logprobs[ids["and"]] + logprobs[ids["to"]]) / 2])
    assert found[1].tolist() == pytest.approx(scores.log_softmax(0).tolist(), abs=1e-4)


def test_composed_questions_add_their_scores(
    policy: CausalPolicy, texts: list[LabelledText], tiny_llama_folder: Path
) -> None:
    parts = [
        {"template": "{text} is {answer}", "words": {"no": ["bird"], "yes": ["and"]}},
        {"template": "{text} in {answer}", "words": {"no": ["to"], "yes": ["the"]}},
    ]
    model = build(policy, method({"kind": "composed", "parts": parts}), texts)
    found = predict(model, texts, ensemble="log_probs", micro_batch_tokens=64)
    first, second = (next_token(tiny_llama_folder, f"a cat sat {end}") for end in ("is", "in"))
    bird, also, to, the = (word(tiny_llama_folder, name) for name in ("bird", "and", "to", "the"))
    scores = torch.stack([first[bird] + second[to], first[also] + second[the]])
    assert found[1].tolist() == pytest.approx(scores.log_softmax(0).tolist(), abs=1e-4)


def test_composed_labels_may_share_words_but_not_all(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    parts = [
        {"template": "{text} is {answer}", "words": {"no": ["bird"], "yes": ["bird"]}},
        {"template": "{text} in {answer}", "words": {"no": ["to"], "yes": ["the"]}},
    ]
    assert build(policy, method({"kind": "composed", "parts": parts}), texts).views == 1
    parts[1]["words"] = {"no": ["to"], "yes": ["to"]}
    with pytest.raises(ValueError, match="'no' and 'yes' have the same words in every part"):
        build(policy, method({"kind": "composed", "parts": parts}), texts)


@pytest.mark.parametrize("budget", [1, 30, 4096])
def test_predictions_do_not_depend_on_batches_or_order(
    policy: CausalPolicy, texts: list[LabelledText], budget: int
) -> None:
    config = method(context={"kind": "demonstrations", "sets": 2}, calibration={"kind": "content_free"})
    model = build(policy, config, texts)
    expected = torch.cat([predict(model, [text], ensemble="probabilities", micro_batch_tokens=1) for text in texts])
    found = predict(model, texts[::-1], ensemble="probabilities", micro_batch_tokens=budget).flip(0)
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(found.exp().sum(1), torch.ones(len(texts)), atol=1e-5)


def test_demonstrations_show_each_label_once_and_never_the_text_itself(
    policy: CausalPolicy, texts: list[LabelledText]
) -> None:
    model = build(policy, method(context={"kind": "demonstrations", "sets": 6, "separator": " | "}), texts)
    for text in texts:
        for view in range(model.views):
            (ids,) = model.encode(text, view)
            shown = decode(ids, policy.backbone.tokenizer).split(" | ")
            assert len(shown) == 3
            assert shown[-1] == f"{text.text} is"
            assert {line.rsplit(" ", 1)[1] for line in shown[:2]} == {"bird", "and"}
            assert all(not line.startswith(f"{text.text} is") for line in shown[:2])


def test_calibration_makes_a_content_free_text_undecided(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    config = method(calibration={"kind": "content_free", "texts": ["the mat"]})
    found = view_logprobs(build(policy, config, texts), texts, 0, micro_batch_tokens=64)
    assert found[3].exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    assert not np.isclose(found[0, 0].exp().item(), 0.5, atol=1e-3)


def test_a_frozen_model_under_a_head_gets_no_gradient(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    head = HeadModel(policy, 2, trains_model=False, seed=0)
    assert [name for name, _ in head.trainable()] == ["label_head.weight", "label_head.bias"]
    head.label_logprobs([head.encode(text, 0) for text in texts], 0)[:, 0].sum().backward()
    assert head.head.weight.grad is not None
    assert all(parameter.grad is None for parameter in policy.backbone.model.parameters())


def test_a_head_reads_the_state_of_the_last_token(
    policy: CausalPolicy, texts: list[LabelledText], tiny_llama_folder: Path
) -> None:
    head = HeadModel(policy, 3, trains_model=False, seed=5)
    found = predict(head, texts, ensemble="log_probs", micro_batch_tokens=64)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_llama_folder),
        AutoTokenizer.from_pretrained(tiny_llama_folder),
    )
    with torch.no_grad():
        state = model.model(**tokenizer(texts[2].text, return_tensors="pt")).last_hidden_state[0, -1]
        expected = (head.head.weight @ state + head.head.bias).log_softmax(0)
    assert found[2].tolist() == pytest.approx(expected.tolist(), abs=1e-4)
