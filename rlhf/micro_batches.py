"""The passes that one rank makes over a batch: its rows, padded, in micro-batches by token budget.

Owns how passes are cut and put together again. What a pass computes is the caller's; who computes which row is
`rlhf.row_shares`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policies.backbone import Backbone
from policies.sequences import SequenceBatch, evaluate_in_micro_batches, pad_sequences
from rlhf.row_shares import RowShare, share_rows
from rlhf.runtime.distributed import Ranks
from rollout.types import PerToken, TokenIds


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows of one pass, by their index in the minibatch; a ghost is a pass of zero weight (see `row_shares`)."""

    indices: list[int]
    batch: SequenceBatch
    is_ghost: bool = False


class MicroBatches:
    """How a rank passes over batches.

    Args:
        backbone: What computes; it decides whether padding counts.
        token_budget: Tokens of one pass.
        ranks: Those that share each batch.
    """

    def __init__(self, backbone: Backbone, *, token_budget: int, ranks: Ranks) -> None:
        self._backbone, self._budget, self._ranks = backbone, token_budget, ranks

    def evaluate(
        self, compute: Callable[[SequenceBatch], Tensor], prompts: Sequence[TokenIds], responses: Sequence[TokenIds]
    ) -> list[PerToken]:
        """Each row's part of what `compute` makes of a pass, (M, R), without gradients, in the order of the rows."""
        share = self._share(prompts, responses)
        own = evaluate_in_micro_batches(
            compute,
            [prompts[i] for i in share.rows],
            [responses[i] for i in share.rows],
            token_budget=self._budget,
            pad_id=self._backbone.pad_id,
            device=self._backbone.device,
            counts_padding=not self._backbone.packs_rows,
        )
        with torch.no_grad():
            for _ in range(share.ghosts):
                compute(self._pad(prompts, responses, [share.ghost_row]))
        return self._ranks.join_rows(dict(zip(share.rows, own, strict=True)), [len(row) for row in responses])

    def over(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Iterator[MicroBatch]:
        """The passes of this rank over a minibatch; every rank has as many."""
        share = self._share(prompts, responses)
        for indices in share.groups:
            yield MicroBatch(indices, self._pad(prompts, responses, indices))
        for _ in range(share.ghosts):
            yield self._ghost(prompts, responses, share)

    def _ghost(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], share: RowShare) -> MicroBatch:
        batch = self._pad(prompts, responses, [share.ghost_row])
        silent = replace(batch, response_mask=torch.zeros_like(batch.response_mask))
        return MicroBatch([share.ghost_row], silent, is_ghost=True)

    def _pad(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds], indices: Sequence[int]) -> SequenceBatch:
        return pad_sequences(
            [prompts[i] for i in indices],
            [responses[i] for i in indices],
            pad_id=self._backbone.pad_id,
            device=self._backbone.device,
        )

    def _share(self, prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> RowShare:
        lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
        counts_padding = not self._backbone.packs_rows
        return share_rows(lengths, self._ranks, token_budget=self._budget, counts_padding=counts_padding)
