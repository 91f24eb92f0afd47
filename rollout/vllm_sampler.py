# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# vllm is an optional extra, absent where types are checked.
"""Our draw of a token inside vLLM: the same noise, and so the same samples, as every other engine.

Owns a logits processor of vLLM 0.32. It draws by inverse CDF at the sampling temperature, or takes a token that is
given, and leaves one finite logit in the row: the token's log-probability. A greedy request with
`logprobs_mode="processed_logits"` then returns exactly this token and this number.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from rollout.noise import uniforms
from rollout.sampler import draw_tokens


@dataclass(frozen=True, slots=True)
class _Row:
    """One request in vLLM's batch.

    Attributes:
        temperature: Of the softmax.
        min_tokens: No stop token before so many.
        stop_ids: Tokens that end the response.
        noise: (R,) uniforms, one for each response token; None where `forced` decides.
        forced: (R,) tokens whose log-probabilities are wanted; None where the row samples.
        sampled: What vLLM has sampled so far; its list, which grows.
    """

    temperature: float
    min_tokens: int
    stop_ids: Sequence[int]
    noise: NDArray[np.float64] | None
    forced: Sequence[int] | None
    sampled: Sequence[int]


class AddressedSampler(LogitsProcessor):
    """Draws the next token of each request from its own noise; see the module's docstring.

    A request says what it wants in `SamplingParams.extra_args`: `temperature`, `min_tokens`, `stop_ids`, and either
    `address` = (seed, step, prompt id, response index) with `length`, or `forced`.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: FBT001 - vLLM's
        del vllm_config, device, is_pin_memory
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: vLLM must run it for greedy requests, too."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follows the requests through vLLM's batch: removed, then added, then moved."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, sampled in batch_update.added:
            self._rows[index] = _row(params, sampled)
        for source, target, direction in batch_update.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[source] = replaced

    def apply(self, logits: Tensor) -> Tensor:
        """(B, V) logits -> the same with one finite entry a row."""
        indices = sorted(self._rows)
        if not indices:
            return logits
        rows = [self._rows[index] for index in indices]
        tokens, logprobs = _next_tokens(logits[indices].float(), rows)
        logits[indices] = torch.full_like(logits[indices], -torch.inf).scatter_(1, tokens, logprobs)
        return logits


def _row(params: SamplingParams, sampled: Sequence[int]) -> _Row:
    extra: Mapping[str, Any] = params.extra_args
    forced = extra.get("forced")
    noise = None
    if forced is None:
        seed, step, prompt_id, response_index = extra["address"]
        noise = uniforms(seed, step, prompt_id, response_index, extra["length"])
    return _Row(extra["temperature"], extra["min_tokens"], extra["stop_ids"], noise, forced, sampled)


def _next_tokens(logits: Tensor, rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
    """(B, 1) tokens and their (B, 1) log-probabilities at each row's temperature."""
    logits /= torch.tensor([[row.temperature] for row in rows])
    for index, row in enumerate(rows):
        if row.forced is None and len(row.sampled) < row.min_tokens:
            logits[index, list(row.stop_ids)] = -torch.inf
    drawn = [0.0 if row.noise is None else float(row.noise[len(row.sampled)]) for row in rows]
    tokens, logprobs = draw_tokens(logits, torch.tensor(drawn, dtype=torch.float64)[:, None])
    for index, row in enumerate(rows):
        if row.forced is not None:
            tokens[index] = row.forced[len(row.sampled)]
            logprobs[index] = torch.log_softmax(logits[index], dim=-1)[tokens[index]]
    return tokens, logprobs
