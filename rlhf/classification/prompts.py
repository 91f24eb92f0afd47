"""The prompts that a configuration asks for: written, composed, or found from labelled texts.

Searches read the model as it was loaded, before anything trains, so a resumed run finds the same prompts again.
"""

from collections.abc import Sequence

from policies.causal import CausalPolicy
from policies.tokenization import encode_prompt
from rlhf.classification.cloze import Prompt, Question
from rlhf.classification.pattern_search import search_patterns
from rlhf.classification.patterns import Pattern, read_pattern
from rlhf.classification.texts import LabelledText
from rlhf.classification.trigger_search import random_triggers, search_triggers
from rlhf.classification.verbalizer import Answers, read_answers
from rlhf.classification.word_search import search_words
from rlhf.config.classify import (
    ComposedPrompts,
    GeneratedPrompts,
    GradientPrompts,
    Prompts,
    Verbalizer,
    WordsVerbalizer,
)

_ROOM_FOR_PATTERNS = 32
"""Tokens of the context that searches keep free for the patterns they try."""


def build_prompts(
    config: Prompts, policy: CausalPolicy, texts: Sequence[LabelledText], labels: Sequence[str], *, seed: int
) -> list[Prompt]:
    """At least one prompt.

    Args:
        config: What is asked for.
        policy: The model as it was loaded.
        texts: Labelled texts, for searches, which leave out those that fill the context.
        labels: Names of the labels.
        seed: Of searches.

    Raises:
        ValueError: a template without its slots, a word that is no token, or texts that lack a label.
    """
    tokenizer = policy.backbone.tokenizer
    if isinstance(config, ComposedPrompts):
        field = "method.prompts.parts.template"
        patterns = [read_pattern(part.template, field=field) for part in config.parts]
        pairs = zip(patterns, config.parts, strict=True)
        questions = [
            Question(pattern, read_answers(part.words, labels, pattern, tokenizer, may_share=True))
            for pattern, part in pairs
        ]
        _require_told_apart([question.answers for question in questions], labels)
        return [tuple(questions)]

    def with_words(pattern: Pattern, verbalizer: Verbalizer) -> Question:
        if isinstance(verbalizer, WordsVerbalizer):
            return Question(pattern, read_answers(verbalizer.words, labels, pattern, tokenizer))
        return Question(pattern, search_words(policy, pattern, _readable(policy, texts), labels, verbalizer))

    if isinstance(config, GradientPrompts):
        pattern = read_pattern(config.template, field="method.prompts.template", with_trigger=True)
        start = random_triggers(config.trigger_tokens, policy.backbone, seed=seed)
        question = with_words(pattern.with_triggers(start), config.verbalizer)
        triggers = search_triggers(
            policy, pattern, question.answers, _readable(policy, texts), config, start=start, seed=seed
        )
        return [(Question(pattern.with_triggers(triggers), question.answers),)]
    if isinstance(config, GeneratedPrompts):
        return [
            (question,)
            for question in search_patterns(
                policy,
                lambda pattern: with_words(pattern, config.verbalizer),
                _readable(policy, texts),
                config,
                seed=seed,
            )
        ]
    patterns = [read_pattern(template, field="method.prompts.templates") for template in config.templates]
    return [(with_words(pattern, config.verbalizer),) for pattern in patterns]


def _readable(policy: CausalPolicy, texts: Sequence[LabelledText]) -> list[LabelledText]:
    """The texts that leave room for a pattern.

    Raises:
        ValueError: none does.
    """
    backbone = policy.backbone
    limit = backbone.context_tokens - _ROOM_FOR_PATTERNS
    fitting = [text for text in texts if len(encode_prompt(text.text, backbone.tokenizer)) <= limit]
    if not fitting:
        raise ValueError(
            f"data.train: a search needs texts of at most {limit} tokens, and there is none; shorten them, or take a "
            "model with a longer context"
        )
    return fitting


def _require_told_apart(parts: Sequence[Answers], labels: Sequence[str]) -> None:
    """Refuses two labels with the same words in every question.

    Raises:
        ValueError: naming them.
    """
    seen: dict[tuple[frozenset[int], ...], str] = {}
    for index, label in enumerate(labels):
        key = tuple(frozenset(answers.token_ids[index]) for answers in parts)
        if key in seen:
            raise ValueError(
                f"method.prompts.parts: the labels {seen[key]!r} and {label!r} have the same words in every part; give "
                "them different words in one"
            )
        seen[key] = label
