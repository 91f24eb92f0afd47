"""Comparisons -> token ids and index tensors for the ranking loss; every completion stands in a batch exactly once.

Owns encoding with its length limit, and the index bookkeeping of K-wise comparisons. Padding is `policies.sequences`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from policies.shared_prefix import shared_prefix_length
from reward.encoding import ExchangeEncoder, TokenIds, require_length
from reward.preferences import Comparison, ComparisonSet
from reward.row_fields import BadRowError, OnBadRow, RowReader

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EncodedComparison:
    """A comparison as a model reads it.

    Attributes:
        comparison: What it was made of.
        sequences: K arrays of token ids, prompt and response and end of sequence, in the order of the responses.
        winners: (Q,) int64, index into `sequences` of the better response of each pair.
        losers: (Q,) int64, of the worse one.
        ties: (E, 2) int64, pairs of which neither is better.
        margins: (Q,) how much stronger the labels say the winner is; NaN where they do not say.
        unique_token_count: Tokens of all its sequences, with their common beginning counted once.
    """

    comparison: Comparison
    sequences: tuple[TokenIds, ...]
    winners: Indices
    losers: Indices
    ties: Indices
    margins: NDArray[np.float64]
    unique_token_count: int

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
    winner_index [0, 2, 2], loser_index [1, 3, 4], group_of_pair [0, 1, 1], group_of_sequence [0, 0, 1, 1, 1]. With ties
    the pair (3, 4) is added, with target 0.5 and margin 0.

    Attributes:
        sequences: S arrays of token ids.
        winner_index: (Q,) long, index into the S scores.
        loser_index: (Q,) long.
        group_of_pair: (Q,) long, the comparison that each pair belongs to, counted from 0.
        group_of_sequence: (S,) long, the same for each sequence.
        group_weight: (C,) float32, say of each comparison.
        target: (Q,) float32, probability that the winner wins; 0.5 for a tie.
        margin: (Q,) float32, how much stronger the labels say the winner is; NaN where they do not say.
    """

    sequences: list[TokenIds]
    winner_index: Tensor
    loser_index: Tensor
    group_of_pair: Tensor
    group_of_sequence: Tensor
    group_weight: Tensor
    target: Tensor
    margin: Tensor


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


def collate(
    comparisons: Sequence[EncodedComparison], device: torch.device | str = "cpu", *, with_ties: bool = False
) -> PreferenceBatch:
    """Puts comparisons side by side, their indices shifted to the common list of sequences.

    Args:
        comparisons: C comparisons.
        device: where the tensors end up.
        with_ties: Adds the pairs of which neither is better, with target 0.5 and margin 0.
    """
    counts = [len(comparison.sequences) for comparison in comparisons]
    starts = np.cumsum(counts) - counts
    pairs = [_pairs(comparison, with_ties=with_ties) for comparison in comparisons]
    winners, losers = np.concatenate([pair.ends + start for pair, start in zip(pairs, starts, strict=True)]).T
    groups = np.arange(len(comparisons))

    def to_device(array: NDArray[Any], dtype: type = np.int64) -> Tensor:
        return torch.from_numpy(array.astype(dtype)).to(device)

    return PreferenceBatch(
        sequences=[sequence for comparison in comparisons for sequence in comparison.sequences],
        winner_index=to_device(winners),
        loser_index=to_device(losers),
        group_of_pair=to_device(np.repeat(groups, [len(pair.ends) for pair in pairs])),
        group_of_sequence=to_device(np.repeat(groups, counts)),
        group_weight=to_device(np.array([c.comparison.weight for c in comparisons]), np.float32),
        target=to_device(np.concatenate([pair.target for pair in pairs]), np.float32),
        margin=to_device(np.concatenate([pair.margin for pair in pairs]), np.float32),
    )


def group_comparisons(
    comparisons: Sequence[EncodedComparison], token_budget: int, *, shares_prefixes: bool = False
) -> list[list[EncodedComparison]]:
    """Micro-batches of whole comparisons of at most `token_budget` tokens each; a larger one stands alone.

    The pairs of one comparison share the forward pass of its responses, so a comparison is never split. Those with the
    longest responses come first: similar lengths share a micro-batch, and the largest memory demand shows at once.

    Args:
        comparisons: In any order.
        token_budget: Tokens of one forward and backward pass, padding not counted.
        shares_prefixes: Counts the common beginning of a comparison's sequences once, because it is read once.
    """
    groups: list[list[EncodedComparison]] = []
    used = 0
    for comparison in sorted(comparisons, key=lambda c: -max(map(len, c.sequences))):
        count = comparison.unique_token_count if shares_prefixes else comparison.token_count
        if groups and used + count <= token_budget:
            groups[-1].append(comparison)
            used += count
        else:
            groups.append([comparison])
            used = count
    return groups


class _Pairs(NamedTuple):
    """(Q, 2) winner and loser of each pair, (Q,) target, (Q,) margin."""

    ends: Indices
    target: NDArray[np.float64]
    margin: NDArray[np.float64]


def _pairs(encoded: EncodedComparison, *, with_ties: bool) -> _Pairs:
    decided = np.stack([encoded.winners, encoded.losers], axis=1)
    target = np.full(len(decided), encoded.comparison.win_probability)
    if not with_ties:
        return _Pairs(decided, target, encoded.margins)
    no_lead = np.zeros(len(encoded.ties))
    return _Pairs(
        np.concatenate([decided, encoded.ties]),
        np.concatenate([target, no_lead + 0.5]),
        np.concatenate([encoded.margins, no_lead]),
    )


def _encode(comparison: Comparison, encoder: ExchangeEncoder, max_tokens: int) -> EncodedComparison:
    sequences = tuple(encoder.from_text(comparison.prompt, response) for response in comparison.responses)
    for sequence in sequences:
        require_length(sequence, max_tokens)
    winners, losers = np.array(comparison.pairs(), dtype=np.int64).T
    strengths = np.full(len(sequences), np.nan) if comparison.strengths is None else np.array(comparison.strengths)
    return EncodedComparison(
        comparison,
        sequences,
        winners,
        losers,
        ties=np.array(comparison.ties(), dtype=np.int64).reshape(-1, 2),
        margins=strengths[winners] - strengths[losers],
        unique_token_count=sum(map(len, sequences)) - (len(sequences) - 1) * shared_prefix_length(sequences),
    )
