"""From next-token log-probabilities to labels: scores of words, calibration, ensembles, and searches for words.

s(y | x) = mean over the words w of y of log p(w | x)          p(y | x) = softmax over labels of s(y | x)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

_SMALLEST_REST = -30.0
"""log(1 - p) of a token that is certain; without the bound its odds would be infinite."""


def label_scores(logprobs: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """s(y | x): mean log-probability of a label's words (Schick and Schuetze 2021 have one word, where it is the same).

    The mean, not the sum, so that a label with more words is not at a disadvantage; of log-probs, not probabilities, so
    that a frequent word does not drown the others.

    Args:
        logprobs: (M, V) next-token log-probabilities, nats.
        words: L lists of token ids, none empty.

    Returns:
        (M, L).
    """
    return torch.stack([logprobs[:, list(ids)].mean(1) for ids in words], dim=1)


def calibrated(label_logprobs: Tensor, content_free: Tensor) -> Tensor:
    """Log of p(y | x) / q(y), normalised again, with q the mean distribution of content-free inputs (Zhao et al. 2021).

    This is their diagonal W = diag(q)^-1 with b = 0, followed by a normalisation instead of a second softmax.

    Args:
        label_logprobs: (M, L) log p(y | x), nats.
        content_free: (C, L) log p(y | nothing), nats.
    """
    mean = content_free.double().exp().mean(0).log().to(label_logprobs.dtype)
    return (label_logprobs - mean).log_softmax(-1)


def combined(views: Tensor, how: Literal["log_probs", "probabilities"]) -> Tensor:
    """One distribution from several views of the same texts.

    "log_probs" is the normalised geometric mean of the distributions, "probabilities" their arithmetic mean.

    Args:
        views: (K, M, L) log p(y | x) in each view, nats.
        how: See above.

    Returns:
        (M, L) log p(y | x), nats.
    """
    if how == "log_probs":
        return views.mean(0).log_softmax(-1)
    return views.logsumexp(0) - torch.tensor(float(len(views))).log()


def likelihood_ratios(logprobs: Tensor, labels: Tensor, label_count: int) -> Tensor:
    """How well each token tells each label from the others (PETAL: Schick et al. 2020, section 3.2).

    LR(t, y) = sum over x of s(x) * log(p(t | x) / (1 - p(t | x))), with s(x) = 1 where the label of x is y, and
    -n_y / (N - n_y) elsewhere, so that both sides weigh the same.

    Args:
        logprobs: (N, C) log p(t | x), nats, below 0.
        labels: (N,) label of each text, 0 .. L - 1, each at least once.
        label_count: L.

    Returns:
        (L, C).
    """
    odds = logprobs - torch.log1p(-logprobs.exp()).clamp(min=_SMALLEST_REST)
    belongs = labels[None] == torch.arange(label_count, device=labels.device)[:, None]
    counts = belongs.sum(1, keepdim=True)
    weights = torch.where(belongs, 1.0, -counts / (len(labels) - counts))
    return weights.to(odds.dtype) @ odds


def first_order_changes(embeddings: Tensor, current: Tensor, gradient: Tensor) -> Tensor:
    """Estimated change of a loss when each token takes the place of the current one (Shin et al. 2020, equation 2).

    loss(w) - loss(current) = (e_w - e_current) . gradient + O(2).

    Args:
        embeddings: (V, D) of all tokens.
        current: (D,) embedding in that place.
        gradient: (D,) of the loss by that embedding, summed over the texts that share it.

    Returns:
        (V,); the lowest are the best candidates.
    """
    return (embeddings.float() - current.float()) @ gradient.float()
