"""Words, triggers and patterns found from labelled texts."""

import math
from typing import Any, cast

import pytest
import torch

from policies.causal import CausalPolicy
from policies.tokenization import decode
from rlhf.classification.cloze import Question
from rlhf.classification.pattern_search import search_patterns
from rlhf.classification.patterns import Pattern, read_pattern
from rlhf.classification.prompts import build_prompts
from rlhf.classification.texts import LabelledText
from rlhf.classification.trigger_search import TriggerObjective, random_triggers, search_triggers
from rlhf.classification.verbalizer import read_answers
from rlhf.classification.word_search import search_words
from rlhf.config.classify import ClozeMethod, GeneratedPrompts, GradientPrompts, SearchedVerbalizer

WORDS = {"no": ["bird"], "yes": ["and", "to"]}
LABELS = ["no", "yes"]
BY_HAND = {"kind": "words", "words": WORDS}


def trigger_config(**settings: Any) -> GradientPrompts:
    return GradientPrompts.model_validate(
        {"template": "{text} {trigger} so {answer}", "verbalizer": BY_HAND, "trigger_tokens": 2, **settings}
    )


def objective_of(policy: CausalPolicy) -> TriggerObjective:
    pattern = read_pattern("{text} {trigger} so {answer}", field="template", with_trigger=True)
    answers = read_answers(WORDS, LABELS, pattern.with_triggers((5, 6)), policy.backbone.tokenizer)
    return TriggerObjective(policy, pattern, answers)


def test_the_gradient_of_the_triggers_is_that_of_small_differences(
    policy: CausalPolicy, texts: list[LabelledText]
) -> None:
    """A step of an unused token's embedding away from the current one changes the loss as estimated."""
    objective = objective_of(policy)
    embeddings = cast(torch.Tensor, policy.backbone.model.get_input_embeddings().weight)
    current, other, step = 40, 299, 1e-2
    assert policy.backbone.model.config.tie_word_embeddings
    with torch.no_grad():
        embeddings[current] = embeddings[41]  # A token of its own, that no text holds.
        direction = torch.randn(embeddings.shape[1], generator=torch.Generator().manual_seed(0))
        embeddings[other] = embeddings[current] + step * direction
    loss, changes = objective.changes((current, 6), 0, texts)
    assert loss == pytest.approx(objective.loss((current, 6), texts), abs=1e-5)
    assert changes[current] == pytest.approx(0.0, abs=1e-6)
    measured = objective.loss((other, 6), texts) - loss
    assert abs(changes[other].item()) > 1e-4
    assert changes[other].item() == pytest.approx(measured, rel=0.15)


def test_trigger_search_lowers_the_loss_and_repeats_itself(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    objective, config = objective_of(policy), trigger_config(steps=6, candidates=12)
    pattern = read_pattern(config.template, field="template", with_trigger=True)
    answers = read_answers(WORDS, LABELS, pattern.with_triggers((5, 6)), policy.backbone.tokenizer)
    start = random_triggers(2, policy.backbone, seed=1)
    found = [search_triggers(policy, pattern, answers, texts, config, start=start, seed=1) for _ in range(2)]
    assert found[0] == found[1]
    assert objective.loss(found[0], texts) < objective.loss(start, texts) - 0.01
    assert not set(found[0]) & set(policy.backbone.tokenizer.all_special_ids)


def test_word_search_finds_the_tokens_that_a_model_says_of_each_label(
    policy: CausalPolicy, texts: list[LabelledText], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = policy.backbone.tokenizer
    bird, also = (tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in ("bird", "and"))
    labels = {f"{text.text} so": text.label for text in texts}

    def scripted(batch: Any) -> torch.Tensor:
        logits = torch.zeros(len(batch), 300)
        for row, length in enumerate(batch.prompt_lengths.tolist()):
            asked = decode(batch.input_ids[row, :length].tolist(), tokenizer)
            logits[row, bird if labels[asked] == 0 else also] = 5.0
        return logits.log_softmax(-1)

    monkeypatch.setattr(policy, "next_token_logprobs", scripted)
    pattern = read_pattern("{text} so {answer}", field="templates")
    config = SearchedVerbalizer(words_per_label=1, candidates=4)
    found = search_words(policy, pattern, texts, LABELS, config)
    assert found.words == (("bird",), ("and",))
    assert found.token_ids == ((bird,), (also,))


def test_word_search_needs_a_text_of_every_label(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    pattern = read_pattern("{text} so {answer}", field="templates")
    ones = [text for text in texts if text.label == 1]
    with pytest.raises(ValueError, match="label 'no' has no text"):
        search_words(policy, pattern, ones, LABELS, SearchedVerbalizer())


def test_pattern_search_keeps_the_patterns_of_the_lowest_loss(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    config = GeneratedPrompts.model_validate({"verbalizer": BY_HAND, "samples": 8, "pattern_tokens": 3, "keep": 4})

    def with_words(pattern: Pattern) -> Question:
        return Question(pattern, read_answers(WORDS, LABELS, pattern, policy.backbone.tokenizer))

    def loss(question: Question) -> float:
        total = 0.0
        for text in texts:
            ids = policy.backbone.tokenizer("".join(map(str, question.pattern.runs(text.text))), return_tensors="pt")
            with torch.no_grad():
                logprobs = policy.backbone.model(**ids).logits[0, -1].log_softmax(-1)
            scores = torch.stack([logprobs[list(own)].mean() for own in question.answers.token_ids])
            total -= scores.log_softmax(0)[text.label].item()
        return total / len(texts)

    found = search_patterns(policy, with_words, texts, config, seed=2)
    losses = [loss(question) for question in found]
    assert losses == sorted(losses)
    assert losses[0] <= loss(with_words(read_pattern("{text} {answer}", field="x"))) + 1e-4
    assert found == search_patterns(policy, with_words, texts, config, seed=2)
    assert math.isfinite(losses[-1])


def test_searched_prompts_are_what_a_configuration_asks_for(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    prompts = {
        "kind": "gradient",
        "template": "{text} {trigger} {answer}",
        "steps": 1,
        "candidates": 2,
        "verbalizer": {"kind": "search", "words_per_label": 1, "candidates": 10, "shortest_word": 2},
    }
    method = ClozeMethod.model_validate({"prompts": prompts})
    ((question,),) = build_prompts(method.prompts, policy, texts, LABELS, seed=0)
    assert [len(words) for words in question.answers.words] == [1, 1]
    assert len(question.pattern.pieces[2]) == 3  # pyright: ignore[reportArgumentType]


def test_a_search_leaves_out_texts_that_fill_the_context(policy: CausalPolicy, texts: list[LabelledText]) -> None:
    verbalizer = {"kind": "search", "words_per_label": 1, "candidates": 4, "shortest_word": 2}
    written = {"kind": "written", "templates": ["{text} so {answer}"], "verbalizer": verbalizer}
    config = ClozeMethod.model_validate({"prompts": written}).prompts
    long = LabelledText("9", "rain and " * 40, 1)
    with_long = build_prompts(config, policy, [*texts, long], LABELS, seed=0)
    assert with_long == build_prompts(config, policy, texts, LABELS, seed=0)
    with pytest.raises(ValueError, match="texts of at most 32 tokens, and there is none"):
        build_prompts(config, policy, [long], LABELS, seed=0)
