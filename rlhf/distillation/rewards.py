"""Distillation of reward models: the student learns the raw scores of the teacher, and keeps the teacher's scale."""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from policies.config import ModelConfig
from policies.sequences import TokenIds
from policies.sources import naming_models
from policies.tokenization import tokenizer_fingerprint
from reward.demonstrations import encode_demonstrations
from reward.model import RewardModel
from reward.normalization import Normalizer
from reward.scoring import score_sequences
from rlhf.algorithms.distillation_losses import score_regression_loss
from rlhf.config import DistillConfig
from rlhf.config.distill import GivenStudent, Shrink, ShrunkStudent
from rlhf.data import load_rows
from rlhf.distillation.cutting import cut_model, require_possible
from rlhf.distillation.lesson import ExampleStream, Exchange, Metrics

logger = logging.getLogger(__name__)
_NOTHING = np.empty(0, dtype=np.int32)


class RewardLesson:
    """Two reward models on the same exchanges.

    Raises:
        ValueError: the data or the models do not fit.
    """

    def __init__(self, config: DistillConfig) -> None:
        self._config = config
        with naming_models("teacher.path"):
            self.teacher = RewardModel.from_folder(
                config.teacher.path,
                device=config.teacher.device,
                dtype=config.teacher.dtype,
                eos_token=config.teacher.eos_token,
                pad_token=config.teacher.pad_token,
            )
        # Read first: a teacher without a scale would leave a student without one.
        self._normalizer = Normalizer.load(config.teacher.path)
        self.student = self._first_student()
        if isinstance(config.student, ShrunkStudent):
            require_possible(self.student.classifier, config.student.cuts)
        context = min(self.teacher.context_tokens, self.student.context_tokens)
        if config.sequence_tokens > context:
            raise ValueError(
                f"sequence_tokens={config.sequence_tokens} exceeds the context of {context} tokens; lower it"
            )
        self._stream = ExampleStream(self._exchanges(config.data.train, "data.train"), seed=config.seed)
        self._held_out = [] if config.data.eval is None else self._exchanges(config.data.eval, "data.eval")

    def cut(self, shrink: Shrink) -> None:
        """See `Lesson`."""
        self.student = RewardModel(cut_model(self.student.classifier, shrink), self.student.tokenizer)

    def trainable(self) -> list[tuple[str, Parameter]]:
        """See `Lesson`: all weights."""
        self.student.classifier.requires_grad_(requires_grad=True)
        return self.student.trainable()

    def weights(self) -> Mapping[str, Tensor]:
        """See `Lesson`."""
        return self.student.weights()

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Lesson`."""
        self.trainable()
        self.student.load_weights(tensors)

    def next(self, count: int) -> Sequence[Exchange]:
        """See `Lesson`."""
        return self._stream.next(count)

    def units(self, examples: Sequence[Exchange]) -> int:
        """See `Lesson`: texts."""
        return len(examples)

    def loss_sum(self, examples: Sequence[Exchange]) -> Tensor:
        """See `Lesson`: squared distance of the raw scores, reward^2."""
        with torch.no_grad():
            targets = self._scores(self.teacher, examples)
        return score_regression_loss(targets, self._scores(self.student, examples)).sum()

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """See `Lesson`: mean squared distance, and the correlation of both scores."""
        if not self._held_out:
            return {}
        teacher, student = (self._scores(model, self._held_out).cpu() for model in (self.teacher, self.student))
        correlation = float(np.corrcoef(torch.stack([teacher, student]).double().numpy())[0, 1])
        return {
            "eval/score_error": float(score_regression_loss(teacher, student).mean()),
            "eval/score_correlation": correlation,
        }

    def state(self) -> dict[str, Any]:
        """See `Lesson`."""
        return dict(self._stream.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Lesson`."""
        self._stream.load_state_dict(state)

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """See `Lesson`: a reward-model folder."""
        self.student.save(folder, normalizer=self._normalizer, metadata=metadata)

    def _scores(self, model: RewardModel, examples: Sequence[Exchange]) -> Tensor:
        texts = [text.astype(np.int32) for _, text in examples]
        return score_sequences(model, texts, token_budget=self._config.micro_batch_tokens)

    def _first_student(self) -> RewardModel:
        student, teacher = self._config.student, self.teacher
        if isinstance(student, GivenStudent):
            config = ModelConfig(
                path=student.path, device=self._config.teacher.device, pad_token=self._config.teacher.pad_token
            )
            with naming_models("student.path"):
                found = RewardModel.new(config, seed=self._config.seed)
            if tokenizer_fingerprint(found.tokenizer) != tokenizer_fingerprint(teacher.tokenizer):
                raise ValueError(
                    f"student.path={student.path!r}: its tokenizer is not that of teacher.path="
                    f"{self._config.teacher.path!r}; take a student with the same tokenizer"
                )
            return found
        if teacher.is_adapter:
            raise ValueError(
                f"teacher.path={self._config.teacher.path!r} is an adapter, and layers are cut out of whole models; "
                "train the teacher with model.tuning.kind=full, or give a student by student.kind=model"
            )
        return RewardModel(copy.deepcopy(teacher.classifier), teacher.tokenizer)

    def _exchanges(self, source: str, field: str) -> list[Exchange]:
        ids, skipped = encode_demonstrations(
            load_rows(source, field=field),
            self.teacher.tokenizer,
            max_tokens=self._config.sequence_tokens,
            source=f"{field}={source}",
            on_bad_row=self._config.data.on_bad_row,
            chat_template=self._config.teacher.chat_template,
        )
        for line in skipped:
            logger.warning("skipped %s", line)
        return [_whole(text) for text in ids]


def _whole(text: TokenIds) -> Exchange:
    """A reward model reads prompt and completion as one."""
    return _NOTHING, text
