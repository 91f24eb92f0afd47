"""What stands before the endpoints: a call without the token, or too large, is refused before anything reads it.

An ASGI application around another one. It compares tokens in constant time and keeps a body only from who has shown
one; of a refused call it reads a bounded rest and throws it away. Which paths are open to everybody is the caller's to
say.
"""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_DISCARDED_BYTES, _DISCARDING_SECONDS = 2**24, 2.0
"""What is read of a refused body before the answer."""


class _RefusedError(Exception):
    """An answer in place of the application's, before a body of which there may be more to come."""

    def __init__(self, status: int, detail: str, *, has_more: bool = True) -> None:
        super().__init__(detail)
        self.status, self.detail, self.has_more = status, detail, has_more


class Gate:
    """Lets calls through to an application.

    Args:
        application: What answers them.
        token: Expected as `Authorization: Bearer`.
        open_paths: Paths that need no token.
        body_bytes: Largest body; a larger one is answered 413, without keeping it where its length is announced.
        receive_seconds: Longest wait for a whole body; after it 408.
    """

    def __init__(
        self,
        application: Application,
        *,
        token: str,
        open_paths: Collection[str],
        body_bytes: int,
        receive_seconds: float,
    ) -> None:
        self._application, self._token = application, token.encode()
        self._open_paths, self._body_bytes, self._receive_seconds = open_paths, body_bytes, receive_seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answers, or lets the application answer; see the ASGI specification."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            if scope["path"] not in self._open_paths:
                self._require_token(headers.get(b"authorization", b""))
            body = await self._read(headers.get(b"content-length", b"0"), receive)
        except _RefusedError as refused:
            if refused.has_more:
                await self._discard(receive)
            await _refuse(refused, send)
            return
        await self._application(scope, _replay(body, receive), send)

    async def _discard(self, receive: Receive) -> None:
        """Reads on, for a while: a connection that is closed while its client still sends may lose the answer."""
        left = _DISCARDED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(self._receive_seconds, _DISCARDING_SECONDS)):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _require_token(self, authorization: bytes) -> None:
        scheme, _, given = authorization.partition(b" ")
        if scheme.lower() != b"bearer" or not secrets.compare_digest(given.strip(), self._token):
            raise _RefusedError(401, "send the token of this server as `Authorization: Bearer TOKEN`")

    async def _read(self, announced: bytes, receive: Receive) -> bytes:
        """The whole body."""
        too_large = f"the body has more than {self._body_bytes} bytes; divide the call"
        if announced.isdigit() and int(announced) > self._body_bytes:
            raise _RefusedError(413, too_large)
        body = bytearray()
        try:
            async with asyncio.timeout(self._receive_seconds):
                while True:
                    message = await receive()
                    body += message.get("body", b"")
                    has_more = message.get("more_body", False)
                    if len(body) > self._body_bytes:
                        raise _RefusedError(413, too_large, has_more=has_more)
                    if not has_more:
                        return bytes(body)
        except TimeoutError as error:
            late = f"the body did not arrive within {self._receive_seconds:g} seconds"
            raise _RefusedError(408, late, has_more=False) from error


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands over a body that was read already, and then goes on."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive_again() -> Message:
        return next(messages, None) or await receive()

    return receive_again


async def _refuse(refused: _RefusedError, send: Send) -> None:
    body = json.dumps({"detail": refused.detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        # What is left of a long body is not read.
        (b"connection", b"close"),
    ]
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
