"""One draw from a categorical distribution, as a deterministic function of logits and a uniform number.

Owns the formula only; where the uniforms come from is `rollout.noise`, when it is called is the engine's business.
"""

import torch
from torch import Tensor


def draw_tokens(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: the first token v with CDF(v) > u, where CDF(v) = sum of softmax(logits) over tokens <= v.

    The sum runs in float64 and is rescaled to end at exactly 1, so no probability is lost at the end of a large vocabulary and a token of
    probability 0 is never drawn. A row's draw does not depend on the other rows.

    Args:
        logits: (B, V) float32, already divided by the temperature; -inf excludes a token.
        uniforms: (B, 1) float64 in [0, 1).

    Returns:
        Tokens (B, 1) int64, and their log-probabilities (B, 1) float32 in nats. Logits that hold NaN give NaN.
    """
    logprobs = torch.log_softmax(logits, dim=-1)
    cumulative = logprobs.exp().cumsum(dim=-1, dtype=torch.float64)
    # u < 1 keeps the product strictly below the total, so the search always ends at a token with mass.
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    # NaN sorts past the end; the caller sees it in the log-probability instead of an index error.
    tokens.clamp_(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens)
