"""An endpoint of scores on a real socket whose answers are a script, and what it was sent."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """One answer of the script."""

    status: int = 200
    body: Any = None
    """Written as JSON, bytes as they are; None scores each response by its length."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    drip_seconds: float = 0.0
    """Pause between single bytes of the body."""


@dataclass
class Endpoint:
    """What the endpoint is told to answer, and what it was sent."""

    url: str = ""
    script: list[Answer] = field(default_factory=list)
    """Answers in the order of calls; after the last, lengths."""
    decide: Callable[[dict[str, Any]], Answer] | None = None
    """Or an answer to the call itself."""
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_answer(self, call: dict[str, Any]) -> Answer:
        with self.lock:
            if self.decide is not None:
                return self.decide(call)
            return self.script.pop(0) if self.script else Answer()


@contextlib.contextmanager
def serve_script(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serves the endpoint in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            call = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint.lock:
                endpoint.calls.append(call)
                endpoint.headers.append({name.lower(): value for name, value in self.headers.items()})
                endpoint.at_once += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
            answer = endpoint.next_answer(call)
            time.sleep(answer.delay_seconds)
            with endpoint.lock:
                endpoint.at_once -= 1
            # The client may have gone by now, which is what some scripts are about.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._send(answer, _body(answer, call))

        def _send(self, answer: Answer, body: bytes) -> None:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            pieces = [body] if not answer.drip_seconds else [body[i : i + 1] for i in range(len(body))]
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()
                time.sleep(answer.drip_seconds)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/score"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def _body(answer: Answer, call: dict[str, Any]) -> bytes:
    if isinstance(answer.body, bytes):
        return answer.body
    if answer.body is not None:
        return json.dumps(answer.body).encode()
    return json.dumps({"scores": [float(len(request["response"])) for request in call["requests"]]}).encode()
