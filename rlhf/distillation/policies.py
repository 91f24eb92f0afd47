"""Distillation of language models: the student learns the teacher's distributions, or the teacher's samples.

Owns how both read the same tokens, and the text stream or the samples they read. The formula is
`rlhf.algorithms.distillation_losses`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.checkpoint import save_model
from policies.config import ModelConfig
from policies.loading import load_backbone, policy_adapter
from policies.logprobs import chunk_tokens_for
from policies.sequences import SequenceBatch, TokenIds, micro_batches, pad_sequences
from policies.sources import naming_models
from policies.tokenization import tokenizer_fingerprint
from rlhf.config import DistillConfig
from rlhf.config.distill import GivenStudent, LogitObjective, SequenceObjective, Shrink, ShrunkStudent
from rlhf.data import load_rows
from rlhf.distillation.chunks import chunked_soft_target_loss
from rlhf.distillation.cutting import cut_model, require_possible
from rlhf.distillation.lesson import ExampleStream, Exchange, Metrics
from rlhf.text_stream import TextStream, encode_documents, require_texts
from rollout.engines import build_generator
from rollout.generation import repeat_prompts
from rollout.prompts import prompts_from_rows

logger = logging.getLogger(__name__)


class PolicyLesson:
    """Two language models on the same tokens.

    Raises:
        ValueError: the data, the models or their tokenizers do not fit.
    """

    def __init__(self, config: DistillConfig) -> None:
        assert isinstance(config.objective, LogitObjective | SequenceObjective), "scores are `rewards`' business"
        self._config, self._objective = config, config.objective
        with naming_models("teacher.path"):
            backbone = load_backbone(config.teacher)
        self.teacher = CausalPolicy(backbone, adapter=policy_adapter(backbone), temperature=1.0)
        self._student = CausalPolicy(self._first_student(), adapter=None, temperature=1.0)
        self._require_fitting()
        if isinstance(config.student, ShrunkStudent):
            require_possible(self._student.backbone.model, config.student.cuts)
        self._stream, self._held_out = self._data()

    @property
    def student(self) -> CausalPolicy:
        """The student as it is now."""
        return self._student

    def cut(self, shrink: Shrink) -> None:
        """See `Lesson`."""
        backbone = self._student.backbone
        model = cut_model(backbone.model, shrink)
        self._student = CausalPolicy(Backbone(model, backbone.tokenizer), adapter=None, temperature=1.0)

    def trainable(self) -> list[tuple[str, Parameter]]:
        """See `Lesson`."""
        return self._student.trainable()

    def weights(self) -> Mapping[str, Tensor]:
        """See `Lesson`."""
        return self._student.weights()

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """See `Lesson`."""
        self._student.load_weights(tensors)

    def next(self, count: int) -> Sequence[Exchange]:
        """See `Lesson`."""
        if isinstance(self._stream, TextStream):
            return [_as_exchange(text) for text in self._stream.next(count)]
        return self._stream.next(count)

    def units(self, examples: Sequence[Exchange]) -> int:
        """See `Lesson`: learned tokens."""
        return sum(len(learned) for _, learned in examples)

    def loss_sum(self, examples: Sequence[Exchange]) -> Tensor:
        """See `Lesson`: (1 - w) T^2 KL + w CE of logits, CE of samples; nats."""
        batch, objective = self._batch(examples), self._objective
        if isinstance(objective, SequenceObjective):
            return self._student.text_nll(batch).sum()
        states = self._student.states(batch)
        loss = (1.0 - objective.data_weight) * self._divergence(batch, states, objective.temperature)
        if objective.data_weight:
            loss = loss - objective.data_weight * self._student.logprobs_of(states, batch).logprobs.sum()
        return loss

    @torch.no_grad()
    def evaluate(self) -> Metrics:
        """See `Lesson`: KL(teacher || student) at temperature 1 and cross-entropy, nats per token."""
        if not self._held_out:
            return {}
        divergence = nll = 0.0
        lengths = [len(given) + len(learned) for given, learned in self._held_out]
        for group in micro_batches(lengths, self._config.micro_batch_tokens):
            batch = self._batch([self._held_out[index] for index in group])
            states = self._student.states(batch)
            divergence += self._divergence(batch, states, 1.0).double().item()
            nll -= self._student.logprobs_of(states, batch).logprobs.double().sum().item()
        count = self.units(self._held_out)
        return {"eval/teacher_kl": divergence / count, "eval/loss": nll / count}

    def state(self) -> dict[str, Any]:
        """See `Lesson`."""
        return dict(self._stream.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """See `Lesson`."""
        self._stream.load_state_dict(state)

    def save(self, folder: Path, metadata: Mapping[str, object]) -> None:
        """See `Lesson`: an ordinary model folder."""
        save_model(folder, self._student.backbone.model, self._student.backbone.tokenizer, metadata)

    def _divergence(self, batch: SequenceBatch, student_states: Tensor, temperature: float) -> Tensor:
        """T^2 KL(teacher || student), summed over the learned tokens."""
        with torch.no_grad():
            teacher_states = self.teacher.states(batch)
        return chunked_soft_target_loss(
            teacher_states[batch.response_mask],
            student_states[batch.response_mask],
            self.teacher.output_layer,
            self._student.output_layer,
            temperature=temperature,
            chunk_tokens=chunk_tokens_for(self._student.backbone.vocabulary_size),
        ).sum()

    def _batch(self, examples: Sequence[Exchange]) -> SequenceBatch:
        given, learned = zip(*examples, strict=True)
        backbone = self._student.backbone
        return pad_sequences(given, learned, pad_id=backbone.pad_id, device=backbone.device)

    def _first_student(self) -> Backbone:
        student, backbone = self._config.student, self.teacher.backbone
        if isinstance(student, GivenStudent):
            with naming_models("student.path"):
                return load_backbone(ModelConfig(path=student.path, device=self._config.teacher.device))
        merged = backbone.adapters.merged_model(self.teacher.adapter)
        return Backbone(merged, backbone.tokenizer)

    def _require_fitting(self) -> None:
        teacher, student = self.teacher.backbone, self._student.backbone
        if tokenizer_fingerprint(teacher.tokenizer) != tokenizer_fingerprint(student.tokenizer):
            raise ValueError(
                f"student.path={student.model.name_or_path!r}: its tokenizer is not that of teacher.path="
                f"{self._config.teacher.path!r}; take a student with the same tokenizer"
            )
        if teacher.vocabulary_size != student.vocabulary_size:
            raise ValueError(
                f"student.path={student.model.name_or_path!r}: its output layer has {student.vocabulary_size} tokens, "
                f"that of teacher.path={self._config.teacher.path!r} {teacher.vocabulary_size}; take a student whose "
                "embeddings have the same size"
            )
        context = min(teacher.context_tokens, student.context_tokens)
        if isinstance(self._objective, LogitObjective) and self._config.sequence_tokens > context:
            raise ValueError(
                f"sequence_tokens={self._config.sequence_tokens} exceeds the context of {context} tokens; lower it"
            )

    def _data(self) -> tuple[TextStream | ExampleStream, list[Exchange]]:
        config, data = self._config, self._config.data
        if isinstance(self._objective, SequenceObjective):
            held_out = [] if data.eval is None else self._sampled(data.eval, "data.eval", self._objective)
            return ExampleStream(self._sampled(data.train, "data.train", self._objective), seed=config.seed), held_out
        tokenizer = self.teacher.backbone.tokenizer
        stream = TextStream(
            self._texts(data.train, "data.train"), tokenizer, sequence_tokens=config.sequence_tokens, seed=config.seed
        )
        texts = [] if data.eval is None else self._texts(data.eval, "data.eval")
        documents = encode_documents(texts, tokenizer, max_tokens=config.sequence_tokens)
        return stream, [_as_exchange(document) for document in documents]

    def _texts(self, source: str, field: str) -> list[str]:
        rows = load_rows(source, field=field)
        texts, skipped = require_texts(rows, source=f"{field}={source}", on_bad_row=self._config.data.on_bad_row)
        _warn(skipped)
        return texts

    def _sampled(self, source: str, field: str, objective: SequenceObjective) -> list[Exchange]:
        """The teacher's answers to the prompts of a source; equal seeds give equal answers, in a resumed run too."""
        backbone = self.teacher.backbone
        found = prompts_from_rows(
            load_rows(source, field=field),
            backbone.tokenizer,
            max_prompt_tokens=objective.max_prompt_tokens,
            source=f"{field}={source}",
            on_bad_row=self._config.data.on_bad_row,
            chat_template=self._config.teacher.chat_template,
        )
        _warn(found.skipped)
        prompts, indices = repeat_prompts(found.prompts, objective.samples_per_prompt)
        generator = build_generator(backbone, self.teacher.adapter, objective.sampling)
        answers = generator.generate(prompts, indices, seed=self._config.seed, step=0)
        exchanges: list[Exchange] = [
            (prompt.token_ids, answer.token_ids) for prompt, answer in zip(prompts, answers, strict=True)
        ]
        longest, context = max(len(p) + len(a) for p, a in exchanges), self._student.backbone.context_tokens
        if longest > context:
            raise ValueError(
                f"{field}={source}: a prompt with its answer has {longest} tokens, the student's context {context}; "
                "lower objective.max_prompt_tokens or objective.sampling.max_response_tokens"
            )
        return exchanges


def _as_exchange(text: TokenIds) -> Exchange:
    return text[:1], text[1:]


def _warn(skipped: Sequence[str]) -> None:
    for line in skipped:
        logger.warning("skipped %s", line)
