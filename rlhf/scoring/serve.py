"""`rlhf serve-reward`: the reward of a configuration, served over HTTP.

Owns the token, the port, and a start and an end that say what was served. The endpoints are `application`.
"""

import logging
import secrets
import signal
import socket
from types import ModuleType
from typing import Any

from rich.console import Console

from reward.composite import build_reward, component_names
from reward.http_protocol import read_token
from rlhf.scoring.batching import Batcher
from rlhf.scoring.config import ServeRewardConfig

_SECONDS_TO_FINISH = 10
"""How long calls that are being answered hold up the end."""

logger = logging.getLogger(__name__)


def run(config: ServeRewardConfig, *, resume: bool) -> None:
    """Serves until Ctrl-C or SIGTERM, then says how much.

    Raises:
        ValueError: what the user can fix: a source, the address, a missing package.
    """
    assert not resume, "the command line offers --resume to resumable stages only"
    uvicorn, application = _server_packages()
    token = read_token(config.token_variable)
    reward = build_reward(config.reward, policy_tokenizer=None)
    batcher = Batcher(
        reward,
        names=component_names(config.reward),
        responses_per_batch=config.responses_per_batch,
        waiting_responses=config.waiting_responses,
        gather_seconds=config.gather_seconds,
    )
    shown = secrets.token_urlsafe(32) if token is None else None
    with _listen(config) as listener:
        app = application.reward_application(batcher, config, token=token or shown)
        settings = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
            lifespan="on",
            limit_concurrency=config.concurrent_calls,
            timeout_graceful_shutdown=_SECONDS_TO_FINISH,
        )
        console = Console(soft_wrap=True, highlight=False, markup=False)
        for line in _announcement(config, _address(listener), shown):
            console.print(line)
        _serve(uvicorn.Server(settings), listener)
    tally = batcher.tally
    console.print(
        f"stopped after {tally.calls} calls in {tally.passes} passes: {tally.responses} responses, "
        f"{tally.failures} without a score"
    )


def _server_packages() -> tuple[ModuleType, ModuleType]:
    try:
        # Not at the top of the file: they come with an extra, and one that is missing is worth a line, not a traceback.
        import uvicorn  # noqa: PLC0415

        from rlhf.scoring import application  # noqa: PLC0415 - needs fastapi, from the same extra
    except ModuleNotFoundError as error:
        raise ValueError(
            f"serve-reward: the package {error.name} is not installed; install the extra: pip install 'rlhf[serve]'"
        ) from error
    return uvicorn, application


def _listen(config: ServeRewardConfig) -> socket.socket:
    """The open port, so that one that is taken is said before the server starts."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ValueError(
            f"host={config.host!r}, port={config.port}: {error.strerror or error}; free it, or choose another"
        ) from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announcement(config: ServeRewardConfig, address: str, shown_token: str | None) -> list[str]:
    names = ", ".join(component_names(config.reward))
    lines = [f"serving {names} at {address}/score"]
    if shown_token is None:
        lines.append(f"token: the one in {config.token_variable}")
    else:
        lines.append(f"token, shown this once; clients read it from {config.token_variable}: {shown_token}")
    if config.host not in ("127.0.0.1", "::1", "localhost"):
        lines.append("other machines reach this port, and the token travels unencrypted; put TLS in front")
    return [*lines, f"description: {address}/openapi.json; Ctrl-C stops"]


def _serve(server: Any, listener: socket.socket) -> None:
    """Until a signal; the server finishes what it has begun, then raises the signal again, which is no failure here."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        logger.debug("stopped by a signal")
    finally:
        signal.signal(signal.SIGTERM, previous)
