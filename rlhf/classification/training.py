"""The optimizer steps of a classifier: cross-entropy of labels, in whatever way the classifier reads them.

Owns the order of texts, the views they are seen in, micro-batches, and the state of a checkpoint. Every step of an
epoch shows a text in one view; over the epochs it passes through all of them.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from policies.backbone import Backbone
from policies.sequences import micro_batches
from rlhf.classification.label_model import Encoded, LabelModel
from rlhf.classification.predicting import lengths_of
from rlhf.classification.texts import LabelledText
from rlhf.config import ClassifySettings
from rlhf.optimization import build_optimizer, build_schedule, optimizer_step
from rlhf.runtime.memory import peak_memory_mib
from rlhf.runtime.training_state import TrainingState, load_optimizer_tensors, optimizer_tensors, with_owner

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Shown:
    """A text in one of its views."""

    text: LabelledText
    view: int


class ClassifierTraining:
    """The state between steps: weights, moments and how many steps are done.

    Attributes:
        parameters: What trains, by name.
        total_steps: Steps of the whole run; 0 where nothing trains.
        steps_done: Steps taken.
    """

    def __init__(
        self,
        config: ClassifySettings,
        model: LabelModel,
        backbone: Backbone,
        texts: Sequence[LabelledText],
        *,
        seed: int,
    ) -> None:
        self._config, self._model, self._backbone, self._texts, self._seed = config, model, backbone, texts, seed
        self.total_steps = math.ceil(round(config.epochs * len(texts), 6) / config.examples_per_step)
        self.steps_done = 0
        self.parameters = model.trainable() if self.total_steps else []
        if self.total_steps:
            self._optimizer = build_optimizer(self.parameters, config.optimizer)
            self._schedule = build_schedule(config.optimizer, self.total_steps)

    def step(self) -> Metrics:
        """One optimizer step on the mean cross-entropy of its texts, nats."""
        started, shown = time.perf_counter(), self._texts_of(self.steps_done)
        loss = torch.zeros(())
        for view, inputs, of_inputs in self._micro_batches(shown):
            labels = torch.tensor(of_inputs, device=self._backbone.device)
            logprobs = self._model.label_logprobs(inputs, view)
            part = -logprobs.gather(1, labels[:, None]).sum() / len(shown)
            part.backward()
            loss += part.detach().cpu()
        taken = optimizer_step(
            self._optimizer,
            self._config.optimizer,
            self._schedule,
            self.parameters,
            step=self.steps_done,
            loss=float(loss),
        )
        self.steps_done += 1
        return {
            "loss/train": float(loss),
            "policy/grad_norm": taken.grad_norm,
            "progress/lr": taken.learning_rate,
            "progress/epoch": min(
                self.steps_done * self._config.examples_per_step / len(self._texts), self._config.epochs
            ),
            "perf/peak_memory_mib": peak_memory_mib(self._backbone.device),
            "time/step": time.perf_counter() - started,
        }

    def state(self) -> TrainingState:
        """Everything that decides the next step."""
        tensors = {
            **with_owner("model", self._model.weights()),
            **with_owner("optimizer", optimizer_tensors(self._optimizer, self.parameters)),
        }
        return TrainingState(self.steps_done, tensors)

    def restore(self, state: TrainingState) -> None:
        """Continues from a checkpoint."""
        self._model.load_weights(state.tensors_of("model"))
        load_optimizer_tensors(self._optimizer, self.parameters, state.tensors_of("optimizer"))
        self.steps_done = state.step

    def _texts_of(self, step: int) -> list[Shown]:
        """A function of seed and step; every epoch is a permutation of its own, and the last may be cut."""
        count, size = len(self._texts), self._config.examples_per_step
        last = min((step + 1) * size, round(self._config.epochs * count))
        places = range(step * size, max(last, step * size + 1))
        orders = {epoch: self._order(epoch) for epoch in {place // count for place in places}}
        return [
            Shown(
                self._texts[index := int(orders[place // count][place % count])],
                (index + place // count) % self._model.views,
            )
            for place in places
        ]

    def _order(self, epoch: int) -> list[int]:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._texts)).tolist()

    def _micro_batches(self, shown: Sequence[Shown]) -> Iterator[tuple[int, list[Encoded], list[int]]]:
        """View, inputs and labels of texts of one view and of similar length."""
        for view in sorted({row.view for row in shown}):
            texts = [row.text for row in shown if row.view == view]
            inputs = [self._model.encode(text, view) for text in texts]
            for group in micro_batches(lengths_of(inputs), self._config.micro_batch_tokens):
                yield view, [inputs[index] for index in group], [texts[index].label for index in group]
