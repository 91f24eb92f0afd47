"""The draw of a token, as a deterministic function of logits and a uniform number.

Owns the formula and its form as a logits processor of transformers. Where the uniforms come from is `rollout.noise`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from rollout.config import SamplingConfig


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


class ForcedSampler(LogitsProcessor):
    """Draws the next token of every row, keeps its log-probability, and leaves a greedy search no other choice.

    Args:
        noise: (R, B, 1) float64 uniforms, one for each response token.
        sampling: Temperature and shortest response.
        stop_ids: Excluded from the distribution, and so from the log-probabilities, before `min_response_tokens`.

    Attributes:
        logprobs: (R, B) float32 nats of the drawn tokens. Undefined beyond the last step and behind a row's stop token.
    """

    def __init__(self, noise: Tensor, sampling: SamplingConfig, stop_ids: Sequence[int]) -> None:
        self._noise = noise
        self._temperature = sampling.temperature
        self._min_tokens = sampling.min_response_tokens
        self._stop_ids = torch.tensor(stop_ids, device=noise.device)
        self._position = 0
        self._workspace: Tensor | None = None
        self.logprobs = torch.empty(noise.shape[:2], dtype=torch.float32, device=noise.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Turns (B, V) float32 logits into scores whose maximum is the drawn token.

        Writes into `scores`: `generate` hands over a copy that nobody else reads.
        """
        del input_ids  # one call a step, so the position is the number of calls so far
        if self._temperature != 1.0:
            scores.div_(self._temperature)
        if self._position < self._min_tokens:
            scores.index_fill_(1, self._stop_ids, -torch.inf)
        if self._workspace is None:
            self._workspace = torch.empty_like(scores, dtype=torch.float64)
        tokens, logprobs = draw_tokens(scores, self._noise[self._position], workspace=self._workspace)
        self.logprobs[self._position] = logprobs.squeeze(1)
        self._position += 1
        return scores.scatter_(1, tokens, torch.inf)
