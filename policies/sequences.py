"""Ragged token lists -> right-padded micro-batches, grouped by a token budget.

Owns padding and grouping. It does not know models, log-probabilities (`policies.logprobs`) or the left padding of
generation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TokenIds = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class SequenceBatch:
    """M sequences `prompt + response`, right-padded to T tokens.

    Example: prompts [[5, 6], [7]] and responses [[8], [9, 1]] with pad id 0 give
    input_ids [[5, 6, 8], [7, 9, 1]], prompt_lengths [2, 1], response_mask [[1, 0], [1, 1]].

    Attributes:
        input_ids: (M, T) long; the pad id after the last real token.
        attention_mask: (M, T) bool, True at real tokens.
        position_ids: (M, T) long, 0..T-1 in each row.
        prompt_lengths: (M,) long, P of each row.
        response_lengths: (M,) long, R of each row.
        response_mask: (M, R) bool with R the longest response; True where response token t exists.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    response_mask: Tensor

    def to(self, device: torch.device | str) -> "SequenceBatch":
        """The same batch with every tensor on `device`."""
        return SequenceBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def pad_sequences(
    prompts: Sequence[TokenIds], responses: Sequence[TokenIds], *, pad_id: int, device: torch.device | str = "cpu"
) -> SequenceBatch:
    """Joins each prompt with its response and pads on the right.

    Args:
        prompts: M arrays of at least one token.
        responses: M arrays of at least one token.
        pad_id: id written after the end; any id does, because no result depends on it.
        device: where the tensors end up.

    Raises:
        ValueError: if the counts differ, there is no sequence, or a prompt or response is empty (the first response
            token is predicted from the last prompt token, so there must be one).
    """
    prompt_lengths = _lengths(prompts, "prompts")
    response_lengths = _lengths(responses, "responses")
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts for {len(responses)} responses; give one prompt for each response")
    return _padded(prompts, responses, prompt_lengths, response_lengths, pad_id).to(device)


def pad_texts(texts: Sequence[TokenIds], *, pad_id: int, device: torch.device | str = "cpu") -> SequenceBatch:
    """Plain text as a batch: the first token is the prompt and every later token is predicted.

    Raises:
        ValueError: if a text has fewer than two tokens.
    """
    for index, text in enumerate(texts):
        if len(text) < 2:
            raise ValueError(f"texts[{index}] has {len(text)} tokens; at least 2 are needed to predict one: drop it")
    return pad_sequences([text[:1] for text in texts], [text[1:] for text in texts], pad_id=pad_id, device=device)


def micro_batches(lengths: Sequence[int], token_budget: int, *, counts_padding: bool = True) -> list[list[int]]:
    """Groups indices so that the padded size `len(group) * max(lengths in group)` stays within a budget.

    Without padding to count (`Backbone.packs_rows`) the size is `sum(lengths in group)`.

    Indices are taken longest first (equal lengths keep their order), so rows of one group are similar in length and the
    largest memory demand comes first. A sequence longer than the budget is a group of its own.

    Args:
        lengths: tokens of each sequence, prompt and response.
        token_budget: tokens of one group.
        counts_padding: whether padding counts as tokens.

    Returns:
        Groups that hold each index exactly once.

    Raises:
        ValueError: if the budget is not positive.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget={token_budget} must be at least 1")
    groups: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        size = lengths[groups[-1][0]] if groups and counts_padding else lengths[index]
        if not groups or size > room:
            groups.append([])
            size, room = lengths[index], token_budget
        groups[-1].append(index)
        room -= size
    return groups


@torch.no_grad()
def evaluate_in_micro_batches(
    function: Callable[[SequenceBatch], Tensor],
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    *,
    token_budget: int,
    pad_id: int,
    device: torch.device | str,
    counts_padding: bool = True,
) -> list[NDArray[np.float32]]:
    """Per-token numbers of many sequences, in bounded memory and without gradients.

    Args:
        function: batch -> (M, R).
        prompts: B arrays of ids.
        responses: B arrays of ids.
        token_budget: tokens of one call (see `micro_batches`).
        pad_id: id of the padding.
        device: where `function` wants its input.
        counts_padding: whether padding counts as tokens (see `micro_batches`).

    Returns:
        B float32 arrays of (R,), padding removed, in the order of the input.
    """
    results: dict[int, NDArray[np.float32]] = {}
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    for group in micro_batches(lengths, token_budget, counts_padding=counts_padding):
        batch = pad_sequences([prompts[i] for i in group], [responses[i] for i in group], pad_id=pad_id, device=device)
        values = function(batch).float().cpu().numpy()
        # Copies, because a row would keep the whole padded batch alive.
        results |= {index: values[row, : len(responses[index])].copy() for row, index in enumerate(group)}
    return [results[index] for index in range(len(responses))]


def _lengths(sequences: Sequence[TokenIds], field: str) -> NDArray[np.int64]:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    if lengths.size == 0:
        raise ValueError(f"{field} is empty; a batch needs at least one sequence")
    if not lengths.all():
        raise ValueError(f"{field}[{int(lengths.argmin())}] has no token; every sequence needs at least one")
    return lengths


def _padded(
    prompts: Sequence[TokenIds],
    responses: Sequence[TokenIds],
    prompt_lengths: NDArray[np.int64],
    response_lengths: NDArray[np.int64],
    pad_id: int,
) -> SequenceBatch:
    totals = prompt_lengths + response_lengths
    width = int(totals.max())
    ids = np.full((len(totals), width), pad_id, dtype=np.int64)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        ids[row, : prompt_lengths[row]] = prompt
        ids[row, prompt_lengths[row] : totals[row]] = response
    positions = np.arange(width)
    return SequenceBatch(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(positions < totals[:, None]),
        position_ids=torch.from_numpy(np.tile(positions, (len(totals), 1))),
        prompt_lengths=torch.from_numpy(prompt_lengths),
        response_lengths=torch.from_numpy(response_lengths),
        response_mask=torch.from_numpy(np.arange(response_lengths.max()) < response_lengths[:, None]),
    )
