"""Label log-probabilities of many texts: all views of each, calibrated, then combined.

Owns the batches: rows of similar length together, within a token budget. Neither changes a number beyond rounding.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from policies.sequences import micro_batches
from rlhf.algorithms.label_scores import calibrated, combined
from rlhf.classification.label_model import Encoded, LabelModel
from rlhf.classification.texts import LabelledText


@torch.no_grad()
def predict(
    model: LabelModel,
    texts: Sequence[LabelledText],
    *,
    ensemble: Literal["log_probs", "probabilities"],
    micro_batch_tokens: int,
) -> Tensor:
    """(N, L) log p(y | x) on the CPU, nats."""
    views = [view_logprobs(model, texts, view, micro_batch_tokens=micro_batch_tokens) for view in range(model.views)]
    return combined(torch.stack(views), ensemble)


@torch.no_grad()
def view_logprobs(model: LabelModel, texts: Sequence[LabelledText], view: int, *, micro_batch_tokens: int) -> Tensor:
    """(N, L) log p(y | x) of one view, calibrated where the model is, on the CPU."""
    inputs = [model.encode(text, view) for text in texts]
    rows: dict[int, Tensor] = {}
    for group in micro_batches(lengths_of(inputs), micro_batch_tokens):
        rows |= zip(group, model.label_logprobs([inputs[index] for index in group], view).cpu(), strict=True)
    found = torch.stack([rows[index] for index in range(len(texts))])
    priors = model.priors(view)
    return found if priors is None else calibrated(found, priors.cpu())


def lengths_of(inputs: Sequence[Encoded]) -> list[int]:
    """Tokens of each view's longest prompt, with the one that is predicted."""
    return [1 + max(len(prompt) for prompt in row) for row in inputs]
