"""A classifier made of a policy, patterns and words: the next token after a pattern is the answer.

Owns what a view of a text is (a pattern with a draw of demonstrations), and the step from the policy's next-token
log-probabilities to those of labels. Formulas are `rlhf.algorithms.label_scores`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.causal import CausalPolicy
from policies.sequences import TokenIds
from rlhf.algorithms.label_scores import label_scores
from rlhf.classification.label_model import Encoded
from rlhf.classification.patterns import Pattern, Run, encode_runs
from rlhf.classification.reading import next_token_batch, save_policy
from rlhf.classification.texts import LabelledText
from rlhf.classification.verbalizer import Answers
from rlhf.config.classify import ClozeMethod, ContentFreeCalibration, Demonstrations
from rollout.noise import keyed_generator


@dataclass(frozen=True, slots=True)
class Question:
    """A pattern and what its answers mean."""

    pattern: Pattern
    answers: Answers


Prompt = tuple[Question, ...]
"""Questions that are asked together: their scores of a label add up."""


class ClozeModel:
    """A policy that answers prompts.

    Args:
        policy: The model and what of it trains.
        prompts: At least one; each is a view of a text, or as many views as there are draws of demonstrations.
        method: Context and calibration.
        shown: Texts that demonstrations are drawn from; a text is never shown in front of itself.
        seed: Decides which.
    """

    def __init__(
        self,
        policy: CausalPolicy,
        prompts: Sequence[Prompt],
        method: ClozeMethod,
        *,
        shown: Sequence[LabelledText] = (),
        seed: int = 0,
    ) -> None:
        self._policy, self._prompts, self._method = policy, prompts, method
        self._tokenizer = policy.backbone.tokenizer
        self._shown, self._seed = shown, seed
        context = method.context
        self._sets = context.sets if isinstance(context, Demonstrations) else 1

    @property
    def views(self) -> int:
        """See `LabelModel`."""
        return len(self._prompts) * self._sets

    def encode(self, text: LabelledText, view: int) -> Encoded:
        """See `LabelModel`."""
        shown = self._demonstrations(text, view)
        return tuple(self._encode(question, text.text, shown) for question in self._prompt(view))

    def label_logprobs(self, inputs: Sequence[Encoded], view: int) -> Tensor:
        """See `LabelModel`: softmax over labels of the questions' scores, added up."""
        scores = [
            label_scores(self._next_logprobs([row[part] for row in inputs]), question.answers.token_ids)
            for part, question in enumerate(self._prompt(view))
        ]
        return torch.stack(scores).sum(0).log_softmax(-1)

    def priors(self, view: int) -> Tensor | None:
        """See `LabelModel`."""
        calibration = self._method.calibration
        if not isinstance(calibration, ContentFreeCalibration):
            return None
        texts = [LabelledText(f"content-free {index}", text, -1) for index, text in enumerate(calibration.texts)]
        return self.label_logprobs([self.encode(text, view) for text in texts], view)

    def trainable(self) -> list[tuple[str, Parameter]]:
        """See `LabelModel`."""
        return self._policy.trainable()

    def weights(self) -> Mapping[str, Tensor]:
        """See `LabelModel`."""
        return self._policy.weights()

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """See `LabelModel`."""
        self._policy.load_weights(tensors)

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """See `LabelModel`: `model`, the adapter where one was trained, else the whole model."""
        save_policy(self._policy, folder / "model", metadata)

    def describe(self) -> dict[str, object]:
        """See `LabelModel`."""
        prompts = [
            [
                {
                    "template": question.pattern.describe(self._tokenizer),
                    "words": [list(words) for words in question.answers.words],
                    "token_ids": [list(ids) for ids in question.answers.token_ids],
                }
                for question in prompt
            ]
            for prompt in self._prompts
        ]
        return {"prompts": prompts, "views": self.views}

    def _prompt(self, view: int) -> Prompt:
        return self._prompts[view // self._sets]

    def _encode(self, question: Question, text: str, shown: Sequence[LabelledText]) -> TokenIds:
        runs: list[Run] = []
        context = self._method.context
        for other in shown:
            assert isinstance(context, Demonstrations), "texts are shown only where demonstrations are asked for"
            word = question.answers.words[other.label][0]
            runs += [*question.pattern.solved(other.text, word), context.separator]
        return encode_runs([*runs, *question.pattern.runs(text)], self._tokenizer)

    def _demonstrations(self, text: LabelledText, view: int) -> list[LabelledText]:
        """Solved texts for this one, in an order of chance: a function of seed, text and draw, whatever the batch."""
        context = self._method.context
        if not isinstance(context, Demonstrations):
            return []
        generator = keyed_generator("demonstrations", self._seed, text.text, view % self._sets)
        drawn: list[LabelledText] = []
        for label in range(len(self._prompts[0][0].answers.words)):
            others = [other for other in self._shown if other.label == label and other.text != text.text]
            drawn += [others[place] for place in generator.permutation(len(others))[: context.per_class]]
        return [drawn[place] for place in generator.permutation(len(drawn))]

    def _next_logprobs(self, prompts: Sequence[TokenIds]) -> Tensor:
        return self._policy.next_token_logprobs(next_token_batch(prompts, self._policy.backbone))
