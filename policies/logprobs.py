"""Hidden states -> log-probability and entropy of each response token, in float32 and in chunks.

Owns the only next-token shift of the project: response token t sits at position P + t and is predicted by the hidden
state at position P + t - 1. Index t of every (M, R) result belongs to response token t. Logits exist only for the
positions a mask selects, and only one chunk of them at a time; the (M, T, V) tensor is never built.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax
from torch.utils.checkpoint import checkpoint

from policies.round_sizes import round_places
from policies.sequences import SequenceBatch

OutputLayer = Callable[[Tensor], Tensor]

_LOGITS_PER_CHUNK = 2**27
"""Elements of the largest logits tensor: 512 MiB in float32. With gradients, more chunks cost another product each."""
_FREE_LOGITS_PER_CHUNK, _FREE_TOKENS_PER_CHUNK = 2**23, 512
"""Without gradients, chunks of 32 MiB cost nothing, as long as each has tokens enough to keep the weights busy."""
_LOGITS_PER_PIECE_ON_CPU = 2**19
"""Elements that go from logits to log-probabilities at a time: their float32 numbers stay in the cache."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Per response token, zero at padding.

    Attributes:
        logprobs: (M, R) float32, log pi(token t | everything before it), nats.
        entropy: (M, R) float32, entropy of the distribution token t was drawn from, nats; carries no gradient. None
            unless asked.
    """

    logprobs: Tensor
    entropy: Tensor | None = None


def response_states(hidden: Tensor, batch: SequenceBatch) -> Tensor:
    """The hidden state that precedes each response token: states[m, t] = hidden[m, P_m + t - 1].

    Log-probabilities and values both read it: it has seen everything before token t, and not token t itself.

    Args:
        hidden: (M, T, D) last hidden states of `batch.input_ids`.
        batch: the sequences.

    Returns:
        (M, R, D); at padding some state of the same row, to be masked by the reader.
    """
    rows, width, size = hidden.shape
    positions = _response_positions(batch) - 1
    flat = positions + torch.arange(rows, device=hidden.device).unsqueeze(1) * width
    return hidden.reshape(rows * width, size).index_select(0, flat.reshape(-1)).view(rows, -1, size)


def before_response(batch: SequenceBatch) -> Tensor:
    """(M, T) bool, True at the tokens whose states `response_states` gives for response tokens."""
    place = (
        torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device) + 1 - batch.prompt_lengths.unsqueeze(1)
    )
    return (place >= 0) & (place < batch.response_lengths.unsqueeze(1))


def response_tokens(batch: SequenceBatch) -> Tensor:
    """(M, R) ids of the response tokens: tokens[m, t] = input_ids[m, P_m + t]; some id of the same row at padding."""
    return batch.input_ids.gather(1, _response_positions(batch))


def token_logprobs(
    states: Tensor,
    batch: SequenceBatch,
    output_layer: OutputLayer,
    *,
    temperature: float,
    with_entropy: bool = False,
    chunk_tokens: int = 1024,
) -> TokenLogprobs:
    """Log-probability of every response token: log softmax(output_layer(state) / temperature)[token].

    With gradients and more than one chunk, each chunk's logits are recomputed in the backward pass, so that memory
    does not grow with the number of tokens.

    Args:
        states: (M, R, D) from `response_states`.
        batch: the sequences.
        output_layer: (N, D) states -> (N, V) logits.
        temperature: of sampling; the policy is the distribution at this temperature.
        with_entropy: also -sum_v p_v log p_v.
        chunk_tokens: tokens whose logits exist at the same time (see `chunk_tokens_for`).

    Raises:
        ValueError: if temperature or chunk_tokens is not positive.
    """
    if temperature <= 0 or chunk_tokens < 1:
        raise ValueError(f"temperature={temperature} must be above 0 and chunk_tokens={chunk_tokens} at least 1")
    mask = batch.response_mask
    selected = round_places(mask.reshape(-1))
    rows = states.reshape(-1, states.shape[-1]).index_select(0, selected)
    tokens = response_tokens(batch).reshape(-1).index_select(0, selected)

    def evaluate(rows: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return _chosen_logprobs(output_layer(rows), tokens, temperature, with_entropy=with_entropy)

    logprobs, entropy = _in_chunks(evaluate, rows, tokens, chunk_tokens)
    return TokenLogprobs(
        _scatter(logprobs, selected, mask), _scatter(entropy, selected, mask) if with_entropy else None
    )


def text_logprobs(
    hidden: Tensor, input_ids: Tensor, mask: Tensor, output_layer: OutputLayer, *, chunk_tokens: int = 1024
) -> Tensor:
    """Log-probability of every token of plain text but the first: a sequence whose prompt is its first token.

    Args:
        hidden: (M, T, D) last hidden states.
        input_ids: (M, T) ids.
        mask: (M, T) bool, True at real tokens; right-padded.
        output_layer: (N, D) states -> (N, V) logits.
        chunk_tokens: see `token_logprobs`.

    Returns:
        (M, T - 1) float32 at temperature 1, nats; 0 at padding. Index t belongs to token t + 1.
    """
    lengths = mask.sum(1)
    batch = SequenceBatch(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids),
        prompt_lengths=torch.ones_like(lengths),
        response_lengths=lengths - 1,
        response_mask=mask[:, 1:],
    )
    states = response_states(hidden, batch)
    return token_logprobs(states, batch, output_layer, temperature=1.0, chunk_tokens=chunk_tokens).logprobs


def chunk_tokens_for(vocabulary_size: int) -> int:
    """Tokens whose float32 logits take at most 512 MiB; without gradients, 32 MiB or the logits of 512 tokens."""
    most = max(1, _LOGITS_PER_CHUNK // vocabulary_size)
    if torch.is_grad_enabled():
        return most
    return min(most, max(_FREE_LOGITS_PER_CHUNK // vocabulary_size, _FREE_TOKENS_PER_CHUNK))


def _response_positions(batch: SequenceBatch) -> Tensor:
    """(M, R) position of each response token, P + t; clamped to the last position at padding."""
    offsets = torch.arange(batch.response_mask.shape[1], device=batch.input_ids.device)
    return (batch.prompt_lengths.unsqueeze(1) + offsets).clamp(max=batch.input_ids.shape[1] - 1)


def _in_chunks(
    evaluate: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], rows: Tensor, tokens: Tensor, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """`evaluate` on chunks of rows; with gradients, chunks are recomputed in the backward pass instead of kept."""
    if rows.shape[0] <= chunk_tokens:  # One chunk is within the memory bound anyway.
        return evaluate(rows, tokens)
    chunks = zip(rows.split(chunk_tokens), tokens.split(chunk_tokens), strict=True)
    if torch.is_grad_enabled():
        parts = [checkpoint(evaluate, *chunk, use_reentrant=False, preserve_rng_state=False) for chunk in chunks]
    else:
        parts = [evaluate(*chunk) for chunk in chunks]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chosen_logprobs(
    logits: Tensor, tokens: Tensor, temperature: float, *, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """(N, V) logits, (N,) ids -> (N,) log-probabilities and entropies -sum_v p_v log p_v (empty unless asked)."""
    return cast(tuple[Tensor, Tensor], _ChosenLogprobs.apply(logits, tokens, temperature, with_entropy))


class _ChosenLogprobs(torch.autograd.Function):
    """log p[token] = log softmax(x / temperature)[token] and the entropy of p, in float32.

    The gradient by x is (1[v = token] - p_v) / temperature times the gradient by the log-probability; the entropy has
    none. Only the logits are kept for it, in their own precision: p is computed again.
    """

    @staticmethod
    def forward(  # `apply` passes positions only
        ctx: Any,
        logits: Tensor,
        tokens: Tensor,
        temperature: float,
        with_entropy: bool,  # noqa: FBT001
    ) -> tuple[Tensor, Tensor]:
        chosen, entropy = logits.new_empty(2, len(logits), dtype=torch.float32)
        for piece in _pieces(logits):
            distribution = log_softmax(_tempered(logits[piece], temperature), dim=-1)
            torch.gather(distribution, 1, tokens[piece, None], out=chosen[piece, None])
            if with_entropy:
                entropy[piece] = -torch.linalg.vecdot(distribution.exp(), distribution)
        ctx.save_for_backward(logits, tokens)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy if with_entropy else entropy[:0]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch types it as (ctx, *any)
        ctx: Any, gradient: Tensor, _: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits, tokens = cast(tuple[Tensor, Tensor], ctx.saved_tensors)
        by_logits = torch.empty_like(logits)
        column = (gradient / ctx.temperature).unsqueeze(1)
        for piece in _pieces(logits):
            by_piece = softmax(_tempered(logits[piece], ctx.temperature), dim=-1).mul_(-column[piece])
            by_logits[piece] = by_piece.scatter_add_(1, tokens[piece, None], column[piece])
        return by_logits, None, None, None


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits.float() if temperature == 1.0 else logits.float() / temperature


def _pieces(logits: Tensor) -> list[slice]:
    """Rows of which the float32 numbers stay in a processor's cache; all of them on a GPU."""
    rows, size = logits.shape
    step = max(1, _LOGITS_PER_PIECE_ON_CPU // size) if logits.device.type == "cpu" else max(1, rows)
    return [slice(start, start + step) for start in range(0, rows, step)]


def _scatter(values: Tensor, selected: Tensor, mask: Tensor) -> Tensor:
    """Values of the selected positions back into the shape of the mask, 0 where it is False."""
    return values.new_zeros(mask.numel()).index_copy(0, selected, values).view(mask.shape).masked_fill(~mask, 0.0)
