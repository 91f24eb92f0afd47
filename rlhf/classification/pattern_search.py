"""Patterns sampled from a language model, ranked on labelled texts (after LM-BFF: Gao et al. 2021, section 5.2).

A decoder continues the labelled texts; what it says next, up to a line end, is a candidate for the words between text
and answer. The paper fills the gap between text and label word with T5, which a decoder cannot do.
"""

from collections.abc import Callable, Sequence

import torch

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.loading import load_backbone, policy_adapter
from policies.tokenization import decode, encode_prompt
from rlhf.classification.cloze import ClozeModel, Question
from rlhf.classification.patterns import Pattern, Slot
from rlhf.classification.predicting import view_logprobs
from rlhf.classification.texts import LabelledText
from rlhf.config.classify import ClozeMethod, GeneratedPrompts
from rollout.config import SamplingConfig
from rollout.engines import build_generator
from rollout.noise import keyed_generator
from rollout.types import Prompt

_TOKENS_AT_ONCE = 4096


def search_patterns(
    policy: CausalPolicy,
    with_words: Callable[[Pattern], Question],
    texts: Sequence[LabelledText],
    config: GeneratedPrompts,
    *,
    seed: int,
) -> list[Question]:
    """The patterns of the lowest mean -log p(label), best first; equal seeds find equal patterns.

    Args:
        policy: The model that classifies.
        with_words: Gives a pattern its words.
        texts: Labelled texts.
        config: How many are sampled and kept.
        seed: Of the samples.
    """
    order = keyed_generator("pattern texts", seed).permutation(len(texts))
    judges = [texts[index] for index in order[: config.ranking_texts]]
    # The empty pattern is always one of the candidates, so that the search cannot fall behind it.
    bare = Pattern((Slot.TEXT,), " ")
    candidates = [bare, *(Pattern((Slot.TEXT, f" {words}"), " ") for words in _sampled(policy, texts, config, seed))]
    words = with_words(bare)
    questions = [Question(pattern, words.answers) for pattern in candidates]
    losses = [_loss(policy, question, judges, config) for question in questions]
    ranked = sorted(range(len(questions)), key=losses.__getitem__)
    return [questions[index] for index in ranked[: config.keep]]


def _loss(policy: CausalPolicy, question: Question, judges: Sequence[LabelledText], config: GeneratedPrompts) -> float:
    model = ClozeModel(policy, [(question,)], ClozeMethod(prompts=config))
    logprobs = view_logprobs(model, judges, 0, micro_batch_tokens=_TOKENS_AT_ONCE)
    return -float(logprobs[torch.arange(len(judges)), torch.tensor([text.label for text in judges])].mean())


def _sampled(policy: CausalPolicy, texts: Sequence[LabelledText], config: GeneratedPrompts, seed: int) -> list[str]:
    """Different continuations of texts, as they were drawn."""
    backbone, adapter = _generator(policy, config)
    chosen = keyed_generator("continued texts", seed).integers(0, len(texts), config.samples)
    prompts = [
        Prompt(f"{index}", texts[place].text, encode_prompt(texts[place].text, backbone.tokenizer))
        for index, place in enumerate(chosen)
    ]
    sampling = SamplingConfig(max_response_tokens=config.pattern_tokens, stop_strings=("\n",))
    completions = build_generator(backbone, adapter, sampling).generate(prompts, [0] * len(prompts), seed=seed, step=0)
    found = (decode(completion.token_ids, backbone.tokenizer).strip() for completion in completions)
    return list(dict.fromkeys(words for words in found if words))


def _generator(policy: CausalPolicy, config: GeneratedPrompts) -> tuple[Backbone, str | None]:
    if config.generator is None:
        return policy.backbone, policy.adapter
    backbone = load_backbone(config.generator)
    return backbone, policy_adapter(backbone)
