"""The policy an engine samples from, where its weights live on a `Backbone`: version, exchange of weights, canary.

Owns nothing of decoding. The backbone may be shared with the learner and other roles.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from rollout.types import PerToken, TokenIds

_CANARY_TOKENS = 8192
"""Tokens of one forward pass over given sequences."""


class SampledPolicy:
    """What engines on a backbone share.

    Args:
        backbone: Model, tokenizer and adapters.
        adapter: Name of the policy's adapter; None samples from the bare model.
        temperature: Of sampling.
        merge_adapter: Whether the adapter is merged while decoding, where that loses no precision.
        version: Number of the policy whose weights the backbone holds.

    Attributes:
        version: Number of the policy it samples from.
    """

    def __init__(
        self, backbone: Backbone, adapter: str | None, *, temperature: float, merge_adapter: bool, version: int
    ) -> None:
        self._backbone, self._adapter, self._merge_adapter = backbone, adapter, merge_adapter
        self._policy = CausalPolicy(backbone, adapter=adapter, temperature=temperature)
        self.version = version

    def load_weights(self, tensors: Mapping[str, Tensor], *, version: int) -> None:
        """Overwrites the policy's weights: the adapter's, or all of the model's where there is no adapter.

        Raises:
            ValueError: if names or shapes are not those of the policy.
        """
        self._policy.load_weights(tensors)
        self.version = version

    def logprobs(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> list[PerToken]:
        """Log-probabilities (R,) in nats of given responses at the sampling temperature, by a plain forward pass."""
        return self._policy.response_logprobs(prompts, responses, token_budget=_CANARY_TOKENS)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """The model as a sampler needs it: no gradients, the policy's adapter on, merged where that is exact."""
        adapters = self._backbone.adapters
        is_exact = self._backbone.model.dtype == torch.float32 and not self._backbone.is_quantized
        activated = adapters.merged if self._merge_adapter and is_exact else adapters.use
        with activated(self._adapter), torch.no_grad():
            yield
