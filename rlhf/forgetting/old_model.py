"""The model before training, and how far the one that trains has gone from it on the examples it learns.

Owns where the old model lives and which states are compared. The formula is
`rlhf.algorithms.distillation_losses.soft_target_loss`, at temperature 1.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from policies.causal import CausalPolicy
from policies.config import Tuning
from policies.logprobs import chunk_tokens_for, response_states
from policies.reference import ReferencePolicy
from policies.sequences import SequenceBatch
from rlhf.distillation.chunks import chunked_soft_target_loss


class OldModel:
    """coefficient * KL(old || new) at the learned tokens (Li and Hoiem 2017, section 3).

    The new model's states are those of its own training pass, so the penalty costs a pass without gradients of the old
    model and two products with the output layer. The old model is the base with adapters off, the frozen copy of the
    adapter that training began with, or, with full tuning, a copy of the whole model.

    Args:
        policy: What trains; to be given before its first step.
        tuning: How it trains.
        coefficient: Factor, per nat.
    """

    def __init__(self, policy: CausalPolicy, tuning: Tuning, *, coefficient: float) -> None:
        old = ReferencePolicy.at_start(policy.backbone, tuning, temperature=1.0)
        self._old = CausalPolicy(old.backbone, adapter=old.adapter, temperature=1.0)
        self._policy, self._coefficient = policy, coefficient

    @contextmanager
    def watch(self) -> Iterator[list[Tensor]]:
        """Lists the last hidden states, (M, T, D), of the passes that the body of the new model takes in the block."""
        states: list[Tensor] = []

        def keep(_module: Any, _arguments: Any, output: Any) -> None:
            states.append(output.last_hidden_state)

        handle = self._policy.backbone.model.base_model.register_forward_hook(keep)
        try:
            yield states
        finally:
            handle.remove()

    def penalty(self, states: Tensor, input_ids: Tensor, labels: Tensor) -> Tensor:
        """The penalty, summed over the learned tokens of a micro-batch; nats.

        Args:
            states: (M, T, D) last hidden states of the new model.
            input_ids: (M, T), right-padded.
            labels: (M, T), -100 where nothing is learned; what is learned stands together at a row's end.
        """
        batch = _sequences(input_ids, labels != -100)
        new = response_states(states, batch)
        with torch.no_grad():
            old = self._old.states(batch)
        divergence = chunked_soft_target_loss(
            old[batch.response_mask],
            new[batch.response_mask],
            self._old.output_layer,
            self._policy.output_layer,
            temperature=1.0,
            chunk_tokens=chunk_tokens_for(self._policy.backbone.vocabulary_size),
        )
        return self._coefficient * divergence.sum()


def _sequences(input_ids: Tensor, is_learned: Tensor) -> SequenceBatch:
    """A micro-batch of TRL's as prompts and responses."""
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    prompts, responses = is_learned.int().argmax(1), is_learned.sum(1)
    return SequenceBatch(
        input_ids=input_ids,
        attention_mask=positions < (prompts + responses).unsqueeze(1),
        position_ids=positions.expand_as(input_ids),
        prompt_lengths=prompts,
        response_lengths=responses,
        response_mask=positions[: int(responses.max())] < responses.unsqueeze(1),
    )
