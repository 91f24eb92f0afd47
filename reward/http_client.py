"""One call to an endpoint of scores: token, timeout, bounded attempts with growing waits, a deadline for all together.

Owns when a call is tried again and when it is given up. What is asked and what an answer means is `reward.http_source`.
"""

import logging
import threading
import time
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx2

from reward.config import HttpSource

ANSWER_BYTES = 64 * 1024**2
"""Longest answer that is read."""
LONGEST_WAIT_SECONDS = 30.0
"""Where doubling ends, and the most that an endpoint's `Retry-After` is listened to."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Statuses that say: later, perhaps."""

# It logs every call at INFO, which is a line for each few responses.
logging.getLogger("httpx2").setLevel(logging.WARNING)


class CallFailedError(Exception):
    """A call got no answer, or none that is worth another attempt. The message says why and holds no secret.

    Attributes:
        status: HTTP status; None where there was none.
    """

    def __init__(self, reason: str, *, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class _PassingError(CallFailedError):
    """A failure that another attempt may not meet."""

    def __init__(self, reason: str, *, status: int | None = None, wait_seconds: float = 0.0) -> None:
        super().__init__(reason, status=status)
        self.wait_seconds = wait_seconds


class Deadline:
    """An end that several threads wait for together, and that one of them may bring forward.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self._end, self._cancelled = time.monotonic() + seconds, threading.Event()

    def remaining(self) -> float:
        """Seconds left."""
        return 0.0 if self._cancelled.is_set() else max(0.0, self._end - time.monotonic())

    def sleep(self, seconds: float) -> bool:
        """Waits, unless no time would be left after it; returns whether there is."""
        return self.remaining() > seconds and not self._cancelled.wait(seconds)

    def cancel(self) -> None:
        """Leaves no time to anybody."""
        self._cancelled.set()


class EndpointClient:
    """Posts JSON to one address, from several threads if need be.

    Args:
        source: Address, timeout and attempts.
        token: Sent as `Authorization: Bearer`; None sends none.
    """

    def __init__(self, source: HttpSource, *, token: str | None) -> None:
        self._source = source
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._client = httpx2.Client(
            headers=headers,
            limits=httpx2.Limits(max_connections=source.concurrent_calls),
            # A proxy from the environment has no way to this machine, and no business with the token.
            trust_env=not _is_this_machine(source.url),
        )

    def post(self, body: bytes, deadline: Deadline) -> bytes:
        """The body of a 200 answer, after as many attempts as it takes.

        Raises:
            CallFailedError: no attempt is left, no time is left, or the answer says that another would be no better.
        """
        for attempt in range(1, self._source.retries + 2):
            limit = min(self._source.timeout_seconds, deadline.remaining())
            if not limit:
                raise CallFailedError(f"no time left of deadline_seconds={self._source.deadline_seconds:g}")
            try:
                return self._attempt(body, limit)
            except _PassingError as error:
                wait = max(self._source.backoff_seconds * 2 ** (attempt - 1), error.wait_seconds)
                if attempt > self._source.retries or not deadline.sleep(min(wait, LONGEST_WAIT_SECONDS)):
                    attempts = f"({attempt} attempt{'s' if attempt > 1 else ''})"
                    raise CallFailedError(f"{error} {attempts}", status=error.status) from error
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, body: bytes, limit_seconds: float) -> bytes:
        """One call. The library's timeout is one for each read, so the whole is timed here too."""
        end = time.monotonic() + limit_seconds
        late = _PassingError(f"no answer within {limit_seconds:.3g} s")
        answer = bytearray()
        try:
            with self._client.stream("POST", self._source.url, content=body, timeout=limit_seconds) as response:
                if response.status_code != 200:
                    raise _refusal(response)
                for piece in response.iter_bytes():
                    answer += piece
                    if len(answer) > ANSWER_BYTES:
                        raise CallFailedError(f"answered more than {ANSWER_BYTES} bytes")
                    if time.monotonic() > end:
                        raise late
        except httpx2.TimeoutException as error:
            raise late from error
        except httpx2.TransportError as error:
            raise _PassingError(str(error) or type(error).__name__) from error
        except httpx2.RequestError as error:
            raise CallFailedError(str(error) or type(error).__name__) from error
        return bytes(answer)


def _refusal(response: httpx2.Response) -> CallFailedError:
    """The body stays unread: what an error page says may be anything, the token included."""
    reason = f"HTTP {response.status_code} {response.reason_phrase}".strip()
    if response.status_code not in PASSING:
        return CallFailedError(reason, status=response.status_code)
    asked = response.headers.get("Retry-After", "")
    return _PassingError(
        reason, status=response.status_code, wait_seconds=float(asked) if asked.isascii() and asked.isdigit() else 0.0
    )


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
