"""The frozen policy that anchors the trained one (the reference of the KL penalty).

Three sources, one class: the base with adapters off, a frozen adapter, or a second copy of the model in memory.
"""

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from policies.backbone import Backbone
from policies.causal import CausalPolicy
from policies.config import FullTuning, Tuning
from policies.loading import REFERENCE_ADAPTER
from policies.sequences import TokenIds


class ReferencePolicy:
    """log pi_reference(token | context), without gradients, in bounded memory."""

    def __init__(self, backbone: Backbone, *, adapter: str | None, temperature: float) -> None:
        """A reference on a backbone that already is what it should be.

        Args:
            backbone: model and adapters; shared with the policy, or a copy of its own.
            adapter: the frozen adapter; None means the base with adapters off.
            temperature: of sampling, the same as the policy's.
        """
        self._policy = CausalPolicy(backbone, adapter=adapter, temperature=temperature)

    @classmethod
    def at_start(cls, backbone: Backbone, tuning: Tuning, *, temperature: float) -> "ReferencePolicy":
        """The policy as it is before training, held still in the cheapest way.

        A backbone that came with an adapter has its frozen copy "reference"; an adapter on a full model leaves the base
        untouched; full tuning needs a second copy of the model. Call it before the first update.
        """
        if REFERENCE_ADAPTER in backbone.adapters.names:
            return cls(backbone, adapter=REFERENCE_ADAPTER, temperature=temperature)
        if not isinstance(tuning, FullTuning):
            return cls(backbone, adapter=None, temperature=temperature)
        return cls(Backbone(copy.deepcopy(backbone.model), backbone.tokenizer), adapter=None, temperature=temperature)

    @property
    def backbone(self) -> Backbone:
        """The model it reads."""
        return self._policy.backbone

    @property
    def adapter(self) -> str | None:
        """The adapter it reads; None for the base."""
        return self._policy.adapter

    def logprobs(
        self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], token_budget: int
    ) -> list[NDArray[np.float32]]:
        """See `CausalPolicy.response_logprobs`."""
        return self._policy.response_logprobs(prompts, responses, token_budget=token_budget)
