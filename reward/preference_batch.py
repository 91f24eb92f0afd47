"""Comparisons -> token ids and index tensors for the ranking loss; every completion stands in a batch exactly once.

Owns encoding with its length limit, and the index bookkeeping of K-wise comparisons. Padding is `policies.sequences`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from reward.encoding import ExchangeEncoder, TokenIds, require_length
from reward.preferences import Comparison, ComparisonSet
from reward.row_fields import BadRowError, OnBadRow, RowReader


@dataclass(frozen=True, slots=True)
class EncodedComparison:
    """A comparison as a model reads it.

    Attributes:
        comparison: What it was made of.
        sequences: K arrays of token ids, prompt and response and end of sequence, in the order of the responses.
        winners: (Q,) int64, index into `sequences` of the better response of each pair.
        losers: (Q,) int64, of the worse one.
    """

    comparison: Comparison
    sequences: tuple[TokenIds, ...]
    winners: NDArray[np.int64]
    losers: NDArray[np.int64]

    @property
    def token_count(self) -> int:
        """Tokens of all its sequences."""
        return sum(len(sequence) for sequence in self.sequences)


@dataclass(frozen=True, slots=True)
class EncodedSet:
    """What came of the comparisons.

    Attributes:
        comparisons: In their order.
        skipped: One line for each row or comparison that was left out, those of the rows before included.
    """

    comparisons: list[EncodedComparison]
    skipped: list[str]


@dataclass(frozen=True, slots=True)
class PreferenceBatch:
    """Some comparisons side by side.

    Example: two comparisons of 2 and 3 responses, the second with a tie behind its winner, give 5 sequences,
    winner_index [0, 2, 2], loser_index [1, 3, 4], group_of_pair [0, 1, 1].

    Attributes:
        sequences: S arrays of token ids.
        winner_index: (Q,) long, index into the S scores.
        loser_index: (Q,) long.
        group_of_pair: (Q,) long, the comparison that each pair belongs to, counted from 0.
    """

    sequences: list[TokenIds]
    winner_index: Tensor
    loser_index: Tensor
    group_of_pair: Tensor


def encode_comparisons(
    found: ComparisonSet, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, source: str, on_bad_row: OnBadRow
) -> EncodedSet:
    """Tokenizes comparisons; one with a sequence that is too long is a bad row.

    Args:
        found: From `comparisons_from_rows`.
        tokenizer: The reward model's.
        max_tokens: Longest prompt plus response, end of sequence included.
        source: Name of the data in errors.
        on_bad_row: "error" stops at the first; "skip" leaves it out and lists it.

    Raises:
        ValueError: a sequence is too long, or nothing is left.
    """
    reader, encoder = RowReader(source, on_bad_row), ExchangeEncoder(tokenizer)
    encoded: list[EncodedComparison] = []
    for comparison in found.comparisons:
        try:
            encoded.append(_encode(comparison, encoder, max_tokens))
        except BadRowError as error:
            reader.refuse(comparison.source, error)
    reader.require_any(encoded)
    return EncodedSet(encoded, [*found.skipped, *reader.skipped])


def collate(comparisons: Sequence[EncodedComparison], device: torch.device | str = "cpu") -> PreferenceBatch:
    """Puts comparisons side by side, their indices shifted to the common list of sequences."""
    counts = [len(comparison.sequences) for comparison in comparisons]
    starts = np.cumsum([0, *counts[:-1]])
    winners = np.concatenate([c.winners + start for c, start in zip(comparisons, starts, strict=True)])
    losers = np.concatenate([c.losers + start for c, start in zip(comparisons, starts, strict=True)])
    groups = np.repeat(np.arange(len(comparisons)), [len(comparison.winners) for comparison in comparisons])
    return PreferenceBatch(
        sequences=[sequence for comparison in comparisons for sequence in comparison.sequences],
        winner_index=torch.from_numpy(winners).to(device),
        loser_index=torch.from_numpy(losers).to(device),
        group_of_pair=torch.from_numpy(groups).to(device),
    )


def group_comparisons(comparisons: Sequence[EncodedComparison], token_budget: int) -> list[list[EncodedComparison]]:
    """Micro-batches of whole comparisons, in order, of at most `token_budget` tokens each; a larger one stands alone.

    The pairs of one comparison share the forward pass of its responses, so a comparison is never split.
    """
    groups: list[list[EncodedComparison]] = []
    used = 0
    for comparison in comparisons:
        if groups and used + comparison.token_count <= token_budget:
            groups[-1].append(comparison)
            used += comparison.token_count
        else:
            groups.append([comparison])
            used = comparison.token_count
    return groups


def _encode(comparison: Comparison, encoder: ExchangeEncoder, max_tokens: int) -> EncodedComparison:
    sequences = tuple(encoder.from_text(comparison.prompt, response) for response in comparison.responses)
    for sequence in sequences:
        require_length(sequence, max_tokens)
    winners, losers = np.array(comparison.pairs(), dtype=np.int64).T
    return EncodedComparison(comparison, sequences, winners, losers)
