"""Words for labels, found from labelled texts (PETAL: Schick et al. 2020)."""

from collections.abc import Sequence

import torch

from policies.causal import CausalPolicy
from policies.sequences import micro_batches
from rlhf.algorithms.label_scores import likelihood_ratios
from rlhf.classification.patterns import Pattern, encode_runs
from rlhf.classification.reading import next_token_batch
from rlhf.classification.texts import LabelledText
from rlhf.classification.verbalizer import Answers, answer_words
from rlhf.config.classify import SearchedVerbalizer

_TEXTS_AT_ONCE_TOKENS = 4096


@torch.no_grad()
def search_words(
    policy: CausalPolicy,
    pattern: Pattern,
    texts: Sequence[LabelledText],
    labels: Sequence[str],
    config: SearchedVerbalizer,
) -> Answers:
    """The words of the highest likelihood ratio for each label (`rlhf.algorithms.label_scores.likelihood_ratios`).

    Candidates are the words of letters that the model finds likeliest in the answer slot, on average over the texts;
    the paper takes the most frequent words of unlabelled text instead, which a few shots do not have.

    Raises:
        ValueError: a label has no text, or there are too few words.
    """
    found = answer_words(pattern, policy.backbone.tokenizer, shortest=config.shortest_word)
    _require_enough(found, texts, labels, config)
    ids = torch.tensor(list(found))
    logprobs = _answer_logprobs(policy, pattern, texts)[:, ids]
    likeliest = logprobs.logsumexp(0).topk(min(config.candidates, len(ids))).indices
    ids, logprobs = ids[likeliest], logprobs[:, likeliest]
    ratios = likelihood_ratios(logprobs, torch.tensor([text.label for text in texts]), len(labels))
    # A word stands for the one label that it tells apart best.
    own = ratios.argmax(0)[None] == torch.arange(len(labels))[:, None]
    chosen = [
        ids[row.masked_fill(~mask, -torch.inf).topk(min(config.words_per_label, int(mask.sum()))).indices].tolist()
        for row, mask in zip(ratios, own, strict=True)
    ]
    if empty := [label for label, tokens in zip(labels, chosen, strict=True) if not tokens]:
        raise ValueError(
            f"method.prompts.verbalizer: no word speaks for label {empty[0]!r} among {len(ids)} candidates; raise "
            "verbalizer.candidates, or give words by hand"
        )
    return Answers(
        tuple(tuple(found[token] for token in tokens) for tokens in chosen), tuple(tuple(tokens) for tokens in chosen)
    )


def _answer_logprobs(policy: CausalPolicy, pattern: Pattern, texts: Sequence[LabelledText]) -> torch.Tensor:
    """(N, V) on the CPU."""
    backbone = policy.backbone
    prompts = [encode_runs(pattern.runs(text.text), backbone.tokenizer) for text in texts]
    rows: dict[int, torch.Tensor] = {}
    for group in micro_batches([len(prompt) for prompt in prompts], _TEXTS_AT_ONCE_TOKENS):
        batch = next_token_batch([prompts[index] for index in group], backbone)
        rows |= zip(group, policy.next_token_logprobs(batch).cpu(), strict=True)
    return torch.stack([rows[index] for index in range(len(texts))])


def _require_enough(
    found: dict[int, str], texts: Sequence[LabelledText], labels: Sequence[str], config: SearchedVerbalizer
) -> None:
    if missing := [label for index, label in enumerate(labels) if all(text.label != index for text in texts)]:
        raise ValueError(
            f"method.prompts.verbalizer.kind=search: label {missing[0]!r} has no text to learn words from; give rows"
        )
    if len(found) < len(labels):
        raise ValueError(
            f"method.prompts.verbalizer.shortest_word={config.shortest_word}: the vocabulary has {len(found)} such "
            f"words for {len(labels)} labels; lower it, or give words by hand"
        )
