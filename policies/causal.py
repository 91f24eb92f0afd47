"""The trainable policy: a backbone, which part of it trains, and a sampling temperature.

Owns nothing but their combination; losses are the learner's, sampling is the rollout's.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

from policies.backbone import Backbone
from policies.logprobs import TokenLogprobs, chunk_tokens_for, token_logprobs
from policies.sequences import SequenceBatch, TokenIds, evaluate_in_micro_batches


class CausalPolicy:
    """pi(token | context) = softmax(logits / temperature)."""

    def __init__(self, backbone: Backbone, *, adapter: str | None, temperature: float) -> None:
        """A policy on a backbone.

        Args:
            backbone: model and adapters.
            adapter: the adapter that is the policy; None means the base weights.
            temperature: of sampling; log-probabilities are taken at it.
        """
        self.backbone = backbone
        self.adapter = adapter
        self.temperature = temperature

    def logprobs(self, batch: SequenceBatch, *, with_entropy: bool = False) -> TokenLogprobs:
        """(M, R) log-probabilities of the response tokens, nats, with gradients where they are enabled."""
        return self.logprobs_of(self.states(batch), batch, with_entropy=with_entropy)

    def response_logprobs(
        self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], *, token_budget: int
    ) -> list[NDArray[np.float32]]:
        """Log-probabilities of every response token, without gradients and in bounded memory.

        Args:
            prompts: B arrays of ids.
            responses: B arrays of ids.
            token_budget: Tokens of one forward pass; changes memory and speed only.

        Returns:
            B float32 arrays of (R,), nats, in the order of the input.
        """
        return evaluate_in_micro_batches(
            lambda batch: self.logprobs(batch).logprobs,
            prompts,
            responses,
            token_budget=token_budget,
            counts_padding=not self.backbone.packs_rows,
            pad_id=self.backbone.pad_id,
            device=self.backbone.device,
        )

    def states(self, batch: SequenceBatch) -> Tensor:
        """(M, R, D) hidden states before each response token: what log-probs and values on this trunk read."""
        with self.backbone.adapters.use(self.adapter):
            return self.backbone.response_states(batch)

    def logprobs_of(self, states: Tensor, batch: SequenceBatch, *, with_entropy: bool = False) -> TokenLogprobs:
        """`logprobs` from the `states` of the same batch."""
        return self._logprobs(states, batch, self.temperature, with_entropy=with_entropy)

    def next_token_logprobs(self, batch: SequenceBatch) -> Tensor:
        """(M, V) float32 log-probabilities of every token in the place of the first response token, nats.

        What the response is does not matter; of each row one distribution over the vocabulary is held.
        """
        logits = self.output_layer(self.states(batch)[:, 0]).float()
        return (logits / self.temperature).log_softmax(-1)

    def text_nll(self, batch: SequenceBatch) -> Tensor:
        """(M, R) negative log-likelihood of text (`policies.sequences.pad_texts`) at temperature 1; 0 at padding."""
        return -self._logprobs(self.states(batch), batch, 1.0, with_entropy=False).logprobs

    def trainable(self) -> list[tuple[str, Parameter]]:
        """What trains, with gradients let in: the adapter's parameters, or all of the model's."""
        return self.backbone.trainable(self.adapter)

    def weights(self) -> dict[str, Tensor]:
        """What training changes, by names that do not depend on the adapter's own; shares memory with the model."""
        return self.backbone.weights(self.adapter)

    def settings(self) -> dict[str, float]:
        """Numbers beside the weights that decide a log-probability: temperature, and the adapter's scalings by layer.

        Two policies with equal weights and equal settings on the same base are one policy.
        """
        scalings = {} if self.adapter is None else self.backbone.adapters.scalings(self.adapter)
        return {"temperature": self.temperature} | {f"scaling of {path}": value for path, value in scalings.items()}

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites what `weights` returned.

        Raises:
            ValueError: if names or shapes differ.
        """
        self.backbone.load_weights(self.adapter, tensors)

    def _logprobs(
        self, states: Tensor, batch: SequenceBatch, temperature: float, *, with_entropy: bool
    ) -> TokenLogprobs:
        return token_logprobs(
            states,
            batch,
            self.output_layer,
            temperature=temperature,
            with_entropy=with_entropy,
            chunk_tokens=chunk_tokens_for(self.backbone.vocabulary_size),
        )

    def output_layer(self, states: Tensor) -> Tensor:
        """(..., D) `states` -> (..., V) logits, before the temperature."""
        # Here, because chunks of it are recomputed during `backward`, long after the caller has left its block.
        with self.backbone.adapters.use(self.adapter):
            return self.backbone.output_layer(states)
