"""The critic: the expected score of a response, at each of its tokens.

Owns the combination of a backbone (the policy's trunk, an adapter on a shared base, or a model of its own) with a
scalar head. Returns, advantages and losses are computed elsewhere.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Parameter

from policies.backbone import Backbone
from policies.base_identity import copy_exactly
from policies.scalar_head import ScalarHead
from policies.sequences import SequenceBatch

_HEAD = "head."


class ValueModel:
    """V_t = w . h_t + b, where h_t has seen everything before response token t."""

    def __init__(self, backbone: Backbone, *, adapter: str | None, head: ScalarHead, trains_body: bool = True) -> None:
        """A critic from its parts.

        Args:
            backbone: model and adapters.
            adapter: what the head reads through; None means the backbone's own weights.
            head: moved to the backbone's device.
            trains_body: False for a head on the policy's trunk (its adapter, or its weights): the trunk belongs to the
                policy, which trains it on both losses, and this critic owns its head alone.
        """
        self.backbone = backbone
        self.adapter = adapter
        self.head = head.to(backbone.device)
        self.trains_body = trains_body

    @classmethod
    def from_reward_adapter(
        cls, backbone: Backbone, *, source: str, adapter: str, head: ScalarHead, mean: float, std: float
    ) -> "ValueModel":
        """A critic that starts from a reward model on the same base, so its first values are normalised scores.

        Args:
            backbone: carries the reward model's adapter.
            source: name of that adapter; it is copied, not shared.
            adapter: name of the critic's new adapter.
            head: the reward model's head.
            mean: mean of the raw scores that normalisation maps to 0.
            std: standard deviation that it maps to 1.

        Raises:
            ValueError: if `source` is unknown, `adapter` is taken or std is not positive.
        """
        normalized = head.normalized(mean=mean, std=std)
        backbone.adapters.copy(source, adapter)
        return cls(backbone, adapter=adapter, head=normalized)

    def values(self, batch: SequenceBatch) -> Tensor:
        """(M, R) float32, reward units; 0 at padding; with gradients where they are enabled."""
        return self.values_of(self.states(batch), batch)

    def states(self, batch: SequenceBatch) -> Tensor:
        """(M, R, D) hidden states before each response token."""
        with self.backbone.adapters.use(self.adapter):
            return self.backbone.response_states(batch)

    def values_of(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        """`values` from the `states` of the same batch: this critic's own, or the policy's where it owns the trunk."""
        return self.head(states).masked_fill(~batch.response_mask, 0.0)

    def trainable(self) -> list[tuple[str, Parameter]]:
        """What trains, with gradients let in: adapter (or body) and head, or the head alone."""
        body: list[tuple[str, Parameter]] = []
        if self.trains_body:
            body = self.backbone.trainable(self.adapter, body_only=True)
        self.head.requires_grad_(requires_grad=True)
        return body + [(_HEAD + name, parameter) for name, parameter in self.head.named_parameters()]

    def state(self) -> dict[str, Tensor]:
        """Tensors of what trains; they share memory with the model."""
        body = self.backbone.weights(self.adapter, body_only=True) if self.trains_body else {}
        return body | {_HEAD + name: parameter.detach() for name, parameter in self.head.named_parameters()}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrites what `state` returned.

        Raises:
            ValueError: if names or shapes differ.
        """
        head = {name.removeprefix(_HEAD): tensor for name, tensor in tensors.items() if name.startswith(_HEAD)}
        body = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
        copy_exactly(dict(self.head.named_parameters()), head, what="value head")
        if self.trains_body:
            self.backbone.load_weights(self.adapter, body, body_only=True)
        elif body:
            raise ValueError(f"value head: the tensors do not fit; unknown {sorted(body)[:3]}")
