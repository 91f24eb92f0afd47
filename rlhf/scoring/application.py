"""The endpoints of `rlhf serve-reward`, and what OpenAPI says about them.

    POST /score          scores of some exchanges (reward.http_protocol), with the token
    GET  /health         whether the server is ready, for everybody
    GET  /openapi.json   this description, for everybody

Owns paths, statuses and the wording of refusals. Who waits for whom is `batching`, who is let in `gate`.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, cast

from fastapi import FastAPI, HTTPException, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.requests import Request

from reward.http_protocol import ScoreAnswer, ScoreCall, answer_of, requests_of
from rlhf import __version__
from rlhf.scoring.batching import Batcher, BusyError, PassFailedError
from rlhf.scoring.config import ServeRewardConfig
from rlhf.scoring.gate import Application, Gate

SCORE, HEALTH, DESCRIPTION = "/score", "/health", "/openapi.json"
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No token, or another one."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large, or the call has too many responses."},
    422: {"description": "The body is no call; `detail` names the place."},
    500: {"description": "A source of the reward failed; the server's log says why."},
    503: {"description": "Too many responses wait; try again after `Retry-After` seconds."},
}


class Health(BaseModel):
    """What `/health` answers once the server is ready."""

    status: Literal["ready"] = "ready"


def reward_application(batcher: Batcher, config: ServeRewardConfig, *, token: str) -> Application:
    """The whole server as an ASGI application.

    Args:
        batcher: What scores; it runs as long as the application does.
        config: Limits.
        token: What callers must show.
    """
    return Gate(
        cast(Application, _endpoints(batcher, config)),
        token=token,
        open_paths=(HEALTH, DESCRIPTION),
        body_bytes=config.call_bytes,
        receive_seconds=config.receive_seconds,
    )


def _endpoints(batcher: Batcher, config: ServeRewardConfig) -> FastAPI:
    @asynccontextmanager
    async def run_batcher(_application: FastAPI) -> AsyncIterator[None]:
        running = asyncio.create_task(batcher.run())
        yield
        running.cancel()

    application = FastAPI(
        title="rlhf reward",
        version=__version__,
        summary="Scores of responses to prompts.",
        openapi_url=DESCRIPTION,
        # Their pages load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        lifespan=run_batcher,
        exception_handlers={RequestValidationError: _say_where},
    )

    @application.get(HEALTH)
    async def health() -> Health:
        """Answers as soon as the reward is loaded."""
        return Health()

    # The gate checks the token; here it is described.
    shows_token = Security(HTTPBearer(auto_error=False, description="The token that the server shows at its start."))

    @application.post(SCORE, responses=_REFUSALS, dependencies=[shows_token])
    async def score(call: ScoreCall) -> ScoreAnswer:
        """One score for each exchange, null where there is none; `failures` says why.

        A score does not depend on the other exchanges of the call.
        """
        if len(call.requests) > config.responses_per_call:
            raise HTTPException(413, f"{len(call.requests)} requests; a call has at most {config.responses_per_call}")
        try:
            return answer_of(await batcher.score(requests_of(call)))
        except BusyError as error:
            raise HTTPException(503, "too many responses wait", headers={"Retry-After": "1"}) from error
        except PassFailedError as error:
            raise HTTPException(500, "a source of the reward failed; the server's log says why") from error

    return application


async def _say_where(_request: Request, error: Exception) -> JSONResponse:
    """The first problem of a body in one line, without the body, which may be long and private."""
    first = cast(RequestValidationError, error).errors()[0]
    place = ".".join(str(step) for step in first["loc"] if step != "body")
    return JSONResponse({"detail": f"{place}: {first['msg']}" if place else first["msg"]}, status_code=422)
