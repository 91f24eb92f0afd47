"""Trigger tokens of a pattern, found along the gradient (AutoPrompt: Shin et al. 2020).

Each step takes the next trigger in turn, estimates to first order what every token in its place would do to the loss
on some labelled texts, tries the best few on the same texts, and keeps the best where it is better.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.logprobs import response_states
from policies.sequences import TokenIds
from rlhf.algorithms.label_scores import first_order_changes, label_scores
from rlhf.classification.patterns import Pattern, Tokens, encode_runs
from rlhf.classification.reading import next_token_batch
from rlhf.classification.texts import LabelledText
from rlhf.classification.verbalizer import Answers
from rlhf.config.classify import GradientPrompts
from rollout.noise import keyed_generator


def random_triggers(count: int, backbone: Backbone, *, seed: int) -> Tokens:
    """Ordinary tokens, drawn at random."""
    allowed = _ordinary_tokens(backbone)
    return tuple(int(token) for token in keyed_generator("triggers", seed).choice(allowed.tolist(), count))


def search_triggers(
    policy: CausalPolicy,
    pattern: Pattern,
    answers: Answers,
    texts: Sequence[LabelledText],
    config: GradientPrompts,
    *,
    start: Tokens,
    seed: int,
) -> Tokens:
    """The triggers after `config.steps` replacements that were tried; equal seeds find equal triggers."""
    objective = TriggerObjective(policy, pattern, answers)
    allowed = _ordinary_tokens(policy.backbone)
    triggers = start
    for step in range(config.steps):
        order = keyed_generator("trigger texts", seed, step).permutation(len(texts))[: config.examples_per_step]
        some, place = [texts[index] for index in order], step % len(triggers)
        loss, changes = objective.changes(triggers, place, some)
        best = allowed[changes[allowed].topk(min(config.candidates, len(allowed)), largest=False).indices]
        for token in best.tolist():
            tried = (*triggers[:place], token, *triggers[place + 1 :])
            if (new := objective.loss(tried, some)) < loss:
                loss, triggers = new, tried
    return triggers


class TriggerObjective:
    """Mean cross-entropy of labels as a function of the triggers, and its gradient by their embeddings."""

    def __init__(self, policy: CausalPolicy, pattern: Pattern, answers: Answers) -> None:
        self._policy, self._pattern, self._answers = policy, pattern, answers
        self._backbone = policy.backbone

    @torch.no_grad()
    def loss(self, triggers: Tokens, texts: Sequence[LabelledText]) -> float:
        """Mean -log p(label), nats."""
        batch = next_token_batch([ids for ids, _ in self._encode(triggers, texts)], self._backbone)
        return float(self._cross_entropy(self._policy.next_token_logprobs(batch), texts))

    def changes(self, triggers: Tokens, place: int, texts: Sequence[LabelledText]) -> tuple[float, Tensor]:
        """The loss, and (V,) its estimated change for every token in one trigger's place."""
        encoded = self._encode(triggers, texts)
        batch = next_token_batch([ids for ids, _ in encoded], self._backbone)
        embeddings = cast(nn.Module, self._backbone.model.get_input_embeddings())
        captured: list[Tensor] = []

        def capture(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            captured.append(output.detach().requires_grad_())
            return captured[0]

        hook = embeddings.register_forward_hook(capture)
        try:
            with self._backbone.adapters.use(self._policy.adapter):
                hidden = self._backbone.hidden_states(batch.input_ids, None, batch.position_ids)
                logits = self._backbone.output_layer(response_states(hidden, batch)[:, 0]).float()
            loss = self._cross_entropy(logits.log_softmax(-1), texts)
            (gradient,) = torch.autograd.grad(loss, captured)
        finally:
            hook.remove()
        rows = torch.arange(len(texts))
        places = torch.tensor([first + place for _, first in encoded])
        current = captured[0][0, places[0]].detach()
        weight = cast(Tensor, embeddings.weight).detach()
        return float(loss.detach()), first_order_changes(weight, current, gradient[rows, places].sum(0)).cpu()

    def _cross_entropy(self, logprobs: Tensor, texts: Sequence[LabelledText]) -> Tensor:
        labels = torch.tensor([text.label for text in texts], device=logprobs.device)
        return nn.functional.cross_entropy(label_scores(logprobs, self._answers.token_ids), labels)

    def _encode(self, triggers: Tokens, texts: Sequence[LabelledText]) -> list[tuple[TokenIds, int]]:
        """Ids of each prompt, and the position of its first trigger."""
        pattern = self._pattern.with_triggers(triggers)
        tokenizer = self._backbone.tokenizer
        found: list[tuple[TokenIds, int]] = []
        for text in texts:
            runs = pattern.runs(text.text)
            before = runs.index(triggers)
            found.append((encode_runs(runs, tokenizer), len(encode_runs(runs[:before], tokenizer))))
        return found


def _ordinary_tokens(backbone: Backbone) -> Tensor:
    """Ids of all tokens but the special ones."""
    special = set(backbone.tokenizer.all_special_ids)
    return torch.tensor([token for token in range(len(backbone.tokenizer)) if token not in special])
