"""What travels between `kind: http` and an endpoint of scores, `rlhf serve-reward` or anybody's: JSON by POST.

    {"requests": [{"prompt": "...", "response": "...", "fields": {"answer": 12}}, ...]}
    {"scores": [0.25, null, ...], "components": {"proxy": [...]}, "failures": [{"index": 1, "reason": "..."}]}

An answer has one score for each request, null where there is none; components and reasons are welcome and may be left
out. A call without requests is a question whether the endpoint is there and lets the caller in; its answer has no
scores. The token travels as `Authorization: Bearer`. Owns the shapes, and where a token is read; it sends nothing.
"""

import math
import os
import re
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from reward.interface import RewardOutput, RewardRequest, Scores


class _Sent(BaseModel):
    """A misspelt key of a call is refused, not overlooked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _Answered(BaseModel):
    """An endpoint may say more than is read here; text for a number is no number."""

    model_config = ConfigDict(frozen=True, strict=True, use_attribute_docstrings=True)


class WireRequest(_Sent):
    """One exchange to score."""

    prompt: str
    """Prompt, rendered as the policy saw it."""
    response: str
    """Response, without special tokens."""
    fields: dict[str, JsonValue] = {}
    """Columns of the data row that rules read."""


class ScoreCall(_Sent):
    """What is asked."""

    requests: list[WireRequest]
    """Exchanges; none only asks whether the endpoint is there."""


class WireFailure(_Answered):
    """Why an exchange has no score."""

    index: int = Field(ge=0)
    """Place in the call."""
    reason: str
    """For people."""


WireScores = list[float | None]


class ScoreAnswer(_Answered):
    """What is answered."""

    scores: WireScores
    """One for each exchange, null where there is none."""
    components: dict[str, WireScores] = {}
    """The parts of each score by the name of their source, before weighting."""
    failures: list[WireFailure] = []
    """Why there is none."""


def read_token(variable: str) -> str | None:
    """The token in an environment variable; None where the variable is not set or empty.

    Raises:
        ValueError: it holds what no header can carry. The message does not show it.
    """
    token = os.environ.get(variable) or None
    if token is not None and not re.fullmatch(r"[!-~]+", token):
        raise ValueError(
            f"environment variable {variable}: a token has no white space and no letters beyond ASCII; set it again"
        )
    return token


def wire_request(request: RewardRequest, row_fields: Sequence[str]) -> WireRequest:
    """A request as it travels, with the named columns of its data row where the row has them.

    Raises:
        ValueError: a column holds what JSON cannot (pydantic's, naming it).
    """
    fields = {name: request.fields[name] for name in row_fields if name in request.fields}
    return WireRequest(prompt=request.prompt, response=request.response, fields=fields)


def requests_of(call: ScoreCall) -> list[RewardRequest]:
    """The requests of a call. They hold text alone: token ids mean nothing to another model."""
    return [RewardRequest(wire.prompt, wire.response, fields=wire.fields) for wire in call.requests]


def answer_of(output: RewardOutput) -> ScoreAnswer:
    """Scores as they travel: what is not finite is null."""
    return ScoreAnswer(
        scores=_to_wire(output.scores),
        components={name: _to_wire(scores) for name, scores in output.components.items()},
        failures=[WireFailure(index=failure.index, reason=failure.reason) for failure in output.failures],
    )


def scores_of(answer: ScoreAnswer) -> Scores:
    """(B,) float32, NaN where there is no finite score."""
    values = [math.nan if score is None else score for score in answer.scores]
    with np.errstate(over="ignore"):
        scores = np.array(values, dtype=np.float64).astype(np.float32)
    return np.where(np.isfinite(scores), scores, np.float32(np.nan))


def _to_wire(scores: Scores) -> WireScores:
    return [score if math.isfinite(score) else None for score in scores.tolist()]
