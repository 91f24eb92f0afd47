"""The draw of a token, as a deterministic function of logits and a uniform number.

Owns the formula, its use on open responses, and its form as a logits processor of transformers. Where the uniforms come
from is `rollout.noise`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rollout.responses import OpenResponse


def draw_tokens(logits: Tensor, uniforms: Tensor, *, workspace: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: the first token v with CDF(v) > u, where CDF(v) sums softmax(logits) over all tokens <= v.

    The sum runs in float64 and u is scaled by its end, so rounding neither loses the end of a large vocabulary nor
    draws a token of probability 0. A row's draw does not depend on the other rows.

    Args:
        logits: (B, V) float32, already divided by the temperature; -inf excludes a token.
        uniforms: (B, 1) float64 in [0, 1).
        workspace: (B, V) float64 that receives the CDF; new memory if left out, which costs more than the sum itself
            for a large vocabulary.

    Returns:
        Tokens (B, 1) int64, and their log-probabilities (B, 1) float32 in nats. Logits that hold NaN give NaN.
    """
    probabilities = torch.softmax(logits, dim=-1)
    cumulative = torch.cumsum(probabilities, dim=-1, dtype=torch.float64, out=workspace)
    # u < 1 keeps the product below the total, so the search ends at a token with mass.
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # NaN ends past the last token; the caller is to see it in the log-probability, not as an index error.
    tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, probabilities.gather(-1, tokens).log_()


class ResponseSampler:
    """Draws the next token of responses that grow side by side.

    Args:
        temperature: Of the softmax; log-probabilities are taken at it, too.
    """

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._workspace: Tensor | None = None

    def extend(self, logits: Tensor, responses: Sequence[OpenResponse]) -> Tensor:
        """Adds a token to every response that is open.

        Args:
            logits: (B, V) float32; written into.
            responses: One for each row.

        Returns:
            (B, 1) tokens; those of ended responses mean nothing.
        """
        if self._temperature != 1.0:
            logits.div_(self._temperature)
        _exclude(logits, responses)
        uniforms = torch.tensor([[response.next_uniform] for response in responses], dtype=torch.float64)
        tokens, logprobs = draw_tokens(logits, uniforms.to(logits.device), workspace=self._workspace_for(logits))
        for response, token, logprob in zip(responses, tokens.tolist(), logprobs.tolist(), strict=True):
            if response.finish_reason is None:
                response.add(token[0], logprob[0])
        return tokens

    def _workspace_for(self, logits: Tensor) -> Tensor:
        rows = len(logits)
        if self._workspace is None or len(self._workspace) < rows:
            self._workspace = torch.empty_like(logits, dtype=torch.float64)
        return self._workspace[:rows]


class ForcedSampler(LogitsProcessor):
    """Draws the next token of every row, and leaves a greedy search no other choice.

    Args:
        responses: What each row of the search is to sample; they receive the tokens.
        temperature: Of the softmax.
    """

    def __init__(self, responses: Sequence[OpenResponse], temperature: float) -> None:
        self._responses = responses
        self._sampler = ResponseSampler(temperature)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turns (B, V) float32 logits into scores whose maximum is the drawn token.

        Writes into `scores`: `generate` hands over a copy that nobody else reads.
        """
        del input_ids  # the responses know what came before
        return scores.scatter_(1, self._sampler.extend(scores, self._responses), torch.inf)


def _exclude(logits: Tensor, responses: Sequence[OpenResponse]) -> None:
    """Sets the logits of what may not be drawn to -inf, in place; rows that exclude the same share an operation."""
    rows_of: dict[tuple[int, ...], list[int]] = {}
    for row, response in enumerate(responses):
        if response.excluded_ids:
            rows_of.setdefault(response.excluded_ids, []).append(row)
    for ids, rows in rows_of.items():
        logits[torch.tensor(rows)[:, None], torch.tensor(ids)] = -torch.inf
