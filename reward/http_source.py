"""The scores of an endpoint: batches out, scores and failures in.

Owns how requests are divided into calls that wait together, and what counts as a score. A response that got none,
whatever went wrong, has no score at all, never 0. Attempts are `reward.http_client`, shapes `reward.http_protocol`.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from pydantic import ValidationError

from reward.config import HttpSource
from reward.http_client import CallFailedError, Deadline, EndpointClient
from reward.http_protocol import ScoreAnswer, read_token, scores_of, wire_request
from reward.interface import RewardRequest, Scores

Scored = tuple[Scores, Mapping[int, str]]
"""(B,) scores, NaN where there is none, and the reasons by index."""

_REASON_LETTERS = 200


class EndpointError(RuntimeError):
    """An endpoint that is needed does not answer, or does not answer with scores."""


class HttpReward:
    """The scores of one endpoint.

    Args:
        source: Where it is and how it is asked.

    Raises:
        ValueError: the token's environment variable is not set, or holds no token.
    """

    def __init__(self, source: HttpSource) -> None:
        self._source, self._token = source, _token_of(source)
        self._client = EndpointClient(source, token=self._token)

    def __call__(self, requests: Sequence[RewardRequest]) -> Scored:
        """Scores every request; one that could not be scored has a reason."""
        scores = np.full(len(requests), np.nan, dtype=np.float32)
        bodies, reasons = self._encode(requests)
        calls = _divided(list(bodies), self._source.responses_per_call)
        deadline = Deadline(self._source.deadline_seconds)
        workers = ThreadPoolExecutor(self._source.concurrent_calls, thread_name_prefix="score-call")
        try:
            answers = [workers.submit(self._ask, [bodies[index] for index in call], deadline) for call in calls]
            for call, (found, why) in zip(calls, _gathered(answers), strict=True):
                scores[call] = found
                reasons |= {call[place]: reason for place, reason in why.items()}
        finally:
            # After an interrupt nobody waits for what is left.
            deadline.cancel()
            workers.shutdown(wait=False, cancel_futures=True)
        return scores, reasons

    def require_reachable(self) -> None:
        """Asks without requests, so that a wrong address or token is known before the run rather than in its midst.

        Raises:
            EndpointError: it does not answer, or not with scores; the message says what to do.
        """
        try:
            self._answer([], Deadline(self._source.deadline_seconds))
        except CallFailedError as error:
            raise EndpointError(f"reward.url={self._source.url!r}: {error}; {self._remedy(error)}") from error

    def _encode(self, requests: Sequence[RewardRequest]) -> tuple[dict[int, bytes], dict[int, str]]:
        """The JSON of each request by index, and the reasons of those that have none."""
        bodies: dict[int, bytes] = {}
        reasons: dict[int, str] = {}
        for index, request in enumerate(requests):
            try:
                bodies[index] = wire_request(request, self._source.row_fields).model_dump_json().encode()
            except ValueError:
                reasons[index] = f"its columns {list(self._source.row_fields)} hold what JSON cannot"
        return bodies, reasons

    def _ask(self, bodies: Sequence[bytes], deadline: Deadline) -> Scored:
        """The scores of one call; a failed call is a reason for each of its responses."""
        try:
            answer = self._answer(bodies, deadline)
        except CallFailedError as error:
            return np.full(len(bodies), np.nan, dtype=np.float32), dict.fromkeys(range(len(bodies)), str(error))
        scores, places = scores_of(answer), range(len(bodies))
        reasons = dict.fromkeys(np.flatnonzero(np.isnan(scores)).tolist(), "the endpoint gave no finite score")
        reasons |= {
            failure.index: self._shown(failure.reason) for failure in answer.failures if failure.index in places
        }
        scores[list(reasons)] = np.nan
        return scores, reasons

    def _answer(self, bodies: Sequence[bytes], deadline: Deadline) -> ScoreAnswer:
        """The answer to one call, with a score or null for each response.

        Raises:
            CallFailedError: there is none.
        """
        body = self._client.post(b'{"requests":[' + b",".join(bodies) + b"]}", deadline)
        try:
            answer = ScoreAnswer.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"]))
            what = f"{place}: {first['msg']}" if place else first["msg"]
            raise CallFailedError(f"answered no scores: {self._shown(what)}", status=200) from error
        if len(answer.scores) != len(bodies):
            raise CallFailedError(f"answered {len(answer.scores)} scores for {len(bodies)} responses", status=200)
        return answer

    def _shown(self, text: str) -> str:
        """What an endpoint said, as it may stand in a log."""
        text = " ".join(text.split())
        if self._token is not None:
            text = text.replace(self._token, "[token]")
        return text if len(text) <= _REASON_LETTERS else f"{text[:_REASON_LETTERS]}..."

    def _remedy(self, error: CallFailedError) -> str:
        if error.status in (401, 403):
            held = f"refuses the token in {self._source.token_variable}" if self._token else "asks for a token"
            return f"the endpoint {held}: set the environment variable to the one that its `rlhf serve-reward` uses"
        if error.status in (404, 405):
            return "correct the path of reward.url (`rlhf serve-reward` answers at /score)"
        if error.status == 200:
            return "it must speak the protocol of reward.http_protocol, as `rlhf serve-reward` does"
        return "start it (`rlhf serve-reward`), or correct reward.url"


def _token_of(source: HttpSource) -> str | None:
    if source.token_variable is None:
        return None
    token = read_token(source.token_variable)
    if token is None:
        raise ValueError(
            f"reward.token_variable={source.token_variable}: that environment variable is not set; export the token of "
            f"{source.url} in it where the reward role runs, or set token_variable=null for an endpoint without one"
        )
    return token


def _divided(indices: Sequence[int], size: int) -> list[list[int]]:
    return [list(indices[start : start + size]) for start in range(0, len(indices), size)]


def _gathered(answers: Iterable[Future[Scored]]) -> list[Scored]:
    return [answer.result() for answer in answers]
