"""Attention by plain matrix products over blocks of queries, keys and values, with the gradients of all of them.

Owns a third-party quirk: torch's fused attention on a CPU does not use the bfloat16 instructions in its backward pass,
which takes three times as long as these products at 128 tokens. Remove this file when it does (torch 2.13). From which
length on they lose is measured in `policies.attention`; the blocks are made by `policies.head_blocks`.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

_SCORES_AT_A_TIME = 2**19
"""Float32 scores that exist at the same time, 2 MiB: all at once take twice as long, most of it for fresh memory."""


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    *,
    scale: float,
    earlier: tuple[Tensor, Tensor] | None = None,
    float32_scores: bool = False,
) -> Tensor:
    """softmax(scale * Q K^T + mask) V, with one tensor of probabilities kept for the backward pass.

    Args:
        query: (B, A, d) blocks of queries.
        key: (B, T, d), one block for each block of queries.
        value: (B, T, d).
        mask: (1, A, E + T), or (N, A, E + T) for every N blocks in turn; additive, in the precision of the scores.
        scale: Factor of the scores.
        earlier: Keys and values (C, E, d) before those of the blocks, of which B / C blocks in a row share one.
        float32_scores: Scores and softmax in float32, for log-probabilities that are compared; else both round to the
            precision of the queries, and the softmax computes in float32 inside.

    Returns:
        (B, A, d).
    """
    keys_before, values_before = (None, None) if earlier is None else earlier
    function = cast(Any, _PlainAttention)
    return function.apply(query, key, value, keys_before, values_before, mask, scale, float32_scores)


@dataclass(frozen=True, slots=True)
class _Keys:
    """What blocks of queries meet: keys, or values, of their own and those before them that several blocks share."""

    own: Tensor
    earlier: Tensor | None

    @property
    def start(self) -> int:
        """E, the first column of a block's own keys."""
        return 0 if self.earlier is None else self.earlier.shape[1]

    def products(self, queries: Tensor) -> Tensor:
        """Q (B, A, d) -> Q K^T (B, A, E + T)."""
        products = queries.new_empty(*queries.shape[:2], self.start + self.own.shape[1])
        if self.earlier is not None:
            shared = self._of_shared(products)[..., : self.start]
            torch.bmm(self._of_shared(queries), self.earlier.transpose(1, 2), out=shared)
        torch.bmm(queries, self.own.transpose(1, 2), out=products[..., self.start :])
        return products

    def weighted(self, weights: Tensor) -> Tensor:
        """W (B, A, E + T) -> W K (B, A, d)."""
        result = torch.bmm(weights[..., self.start :], self.own)
        if self.earlier is not None:
            self._of_shared(result).baddbmm_(self._of_shared(weights)[..., : self.start], self.earlier)
        return result

    def gradients(self, weights: Tensor, queries: Tensor) -> tuple[Tensor, Tensor | None]:
        """W (B, A, E + T) and Q (B, A, d) -> W^T Q, of the own (B, T, d) and of the earlier (C, E, d)."""
        # Copied first: the product itself would transpose a part of a tensor far more slowly.
        own = torch.bmm(weights[..., self.start :].contiguous().transpose(1, 2), queries)
        if self.earlier is None:
            return own, None
        shared = self._of_shared(weights)[..., : self.start].contiguous()
        return own, torch.bmm(shared.transpose(1, 2), self._of_shared(queries))

    def _of_shared(self, blocks: Tensor) -> Tensor:
        """(B, A, n) -> (C, B / C * A, n): blocks that share earlier keys are rows of one product."""
        assert self.earlier is not None, "nothing is shared"
        return blocks.view(len(self.earlier), -1, blocks.shape[-1])


class _PlainAttention(torch.autograd.Function):
    """The gradients, with P the probabilities, S their logits and G the gradient by the output P V.

    dV = P^T G, dP = G V^T, dS = P * (dP - rowsum(P * dP)), dQ = scale dS K, dK = scale dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        keys_before: Tensor | None,
        values_before: Tensor | None,
        mask: Tensor,
        scale: float,
        float32_scores: bool,  # noqa: FBT001 - autograd functions take positions only
    ) -> Tensor:
        if float32_scores:
            assert keys_before is None, "float32 scores are for blocks that share no keys"
            probabilities = _exact_probabilities(query, key, mask, scale)
        else:
            scores = _Keys(key, keys_before).products(query * scale)
            scores.unflatten(0, (-1, len(mask))).add_(mask)
            probabilities = scores.softmax(dim=-1)
        ctx.save_for_backward(query, key, value, keys_before, values_before, probabilities)
        ctx.scale = scale
        return _Keys(value, values_before).weighted(probabilities)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, keys_before, values_before, probabilities = ctx.saved_tensors
        keys, values = _Keys(key, keys_before), _Keys(value, values_before)
        by_value, by_values_before = values.gradients(probabilities, gradients[0])
        by_probability = values.products(gradients[0])
        by_score = cast(Any, torch)._softmax_backward_data(by_probability, probabilities, -1, value.dtype)
        by_query = keys.weighted(by_score).mul_(ctx.scale)
        by_key, by_keys_before = keys.gradients(by_score, query)
        if by_keys_before is not None:
            by_keys_before.mul_(ctx.scale)
        return by_query, by_key.mul_(ctx.scale), by_value, by_keys_before, by_values_before, None, None, None


def _exact_probabilities(query: Tensor, key: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Part by part, so that the float32 scores stay in a processor's cache."""
    probabilities = query.new_empty(*query.shape[:2], key.shape[1])
    step = max(1, _SCORES_AT_A_TIME // probabilities[0].numel())
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        scores = torch.baddbmm(mask, query[part].float(), key[part].float().transpose(1, 2), alpha=scale)
        probabilities[part] = torch.softmax(scores, dim=-1)
    return probabilities
