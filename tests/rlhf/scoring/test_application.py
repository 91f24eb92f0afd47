"""The endpoints: who is let in, what is refused and how, what OpenAPI says, and scores that equal those of a run."""

import asyncio
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn
from starlette.testclient import TestClient

from reward.composite import build_reward
from reward.config import HttpSource
from reward.interface import RewardRequest
from rlhf.scoring.application import reward_application
from rlhf.scoring.batching import Batcher
from rlhf.scoring.config import ServeRewardConfig

TOKEN = "t0ken"
WITH_TOKEN = {"Authorization": f"Bearer {TOKEN}"}
RULES = ({"kind": "length", "maximum_words": 1, "weight": 0.5}, {"kind": "exact_answer", "name": "right"})


def config_of(*sources: dict[str, Any], **options: Any) -> ServeRewardConfig:
    return ServeRewardConfig.model_validate({"reward": sources or RULES, **options})


def application(config, reward=None):
    batcher = Batcher(
        reward or build_reward(config.reward, policy_tokenizer=None),
        names=["length", "right"],
        responses_per_batch=config.responses_per_batch,
        waiting_responses=config.waiting_responses,
        gather_seconds=config.gather_seconds,
    )
    return reward_application(batcher, config, token=TOKEN)


@pytest.fixture
def client():
    with TestClient(application(config_of(responses_per_call=3, call_bytes=1024))) as running:
        yield running


def call(*responses, **fields):
    return {"requests": [{"prompt": "p", "response": text, "fields": fields} for text in responses]}


# --- what is answered -------------------------------------------------------------------------------------------------


def test_scores_components_and_failures_are_answered(client):
    wire = call("so 12", "no")
    wire["requests"][0]["fields"] = {"answer": 12}

    answer = client.post("/score", json=wire, headers=WITH_TOKEN)

    assert answer.status_code == 200
    assert answer.json() == {
        "scores": [0.5, None],
        "components": {"length": [-1.0, 0.0], "right": [1.0, None]},
        "failures": [{"index": 1, "reason": "right: field 'answer' of the data row is missing or empty"}],
    }


def test_a_call_without_requests_says_that_the_server_is_there(client):
    assert client.post("/score", json={"requests": []}, headers=WITH_TOKEN).json() == {
        "scores": [],
        "components": {"length": [], "right": []},
        "failures": [],
    }


def test_health_and_description_are_open_to_everybody(client):
    assert client.get("/health").json() == {"status": "ready"}
    description = client.get("/openapi.json").json()
    score = description["paths"]["/score"]["post"]
    assert set(score["responses"]) == {"200", "401", "408", "413", "422", "500", "503"}
    assert score["security"] == [{"HTTPBearer": []}]
    assert set(description["components"]["schemas"]["ScoreCall"]["properties"]) == {"requests"}
    assert description["components"]["schemas"]["WireRequest"]["properties"]["prompt"]["description"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer other"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": "Bearer "},
    ],
)
def test_who_does_not_show_the_token_is_refused(client, headers):
    answer = client.post("/score", json=call("a"), headers=headers)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "Bearer TOKEN" in answer.json()["detail"]
    assert client.get("/no-such-path", headers=headers).status_code == 401


def test_a_body_that_is_too_large_is_refused_announced_or_not(client):
    large = json.dumps(call("x" * 2000)).encode()

    announced = client.post("/score", content=large, headers=WITH_TOKEN)
    in_pieces = client.post(
        "/score", content=(large[i : i + 100] for i in range(0, len(large), 100)), headers=WITH_TOKEN
    )

    assert (announced.status_code, in_pieces.status_code) == (413, 413)
    assert announced.json() == {"detail": "the body has more than 1024 bytes; divide the call"}
    assert client.post("/score", json=call("x" * 500), headers=WITH_TOKEN).status_code == 200


def test_a_call_of_too_many_responses_is_refused(client):
    answer = client.post("/score", json=call("a", "b", "c", "d"), headers=WITH_TOKEN)

    assert (answer.status_code, answer.json()) == (413, {"detail": "4 requests; a call has at most 3"})


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (b"{", "1: JSON decode error"),
        (b"{}", "requests: Field required"),
        (b'{"requests": [{"prompt": "p"}]}', "requests.0.response: Field required"),
        (b'{"requests": [{"prompt": 1, "response": "r"}]}', "requests.0.prompt: Input should be a valid string"),
        (b'{"requests": [], "request": []}', "request: Extra inputs are not permitted"),
    ],
)
def test_a_body_that_is_no_call_is_refused_with_the_place_and_not_the_body(client, body, place):
    answer = client.post("/score", content=body, headers=WITH_TOKEN | {"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert answer.json() == {"detail": place}


def test_a_reward_that_fails_is_the_servers_failure():
    def broken(requests):
        raise RuntimeError(f"private {len(requests)}")

    with TestClient(application(config_of(), broken)) as running:
        answer = running.post("/score", json=call("a"), headers=WITH_TOKEN)

    assert answer.status_code == 500
    assert "private" not in answer.text


# --- over a socket ----------------------------------------------------------------------------------------------------


@contextmanager
def served(config, reward=None):
    """The address of a server in a thread of this process."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(
        uvicorn.Config(application(config, reward), log_config=None, access_log=False, limit_concurrency=16)
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


def post(address, wire):
    return httpx2.post(f"{address}/score", json=wire, headers=WITH_TOKEN, timeout=10)


def requests(count):
    texts = ["a", "b c", "d e f", ""]
    return [RewardRequest("p", texts[i % 4] + " 12" * (i % 3), fields={"answer": 12}) for i in range(count)]


def test_a_run_gets_the_scores_that_its_own_sources_would_give(monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", TOKEN)
    config = config_of()
    local = build_reward(config.reward, policy_tokenizer=None)(requests(40))

    with served(config) as address:
        source = HttpSource(url=f"{address}/score", row_fields=("answer",), responses_per_call=7, concurrent_calls=3)
        remote = build_reward([source], policy_tokenizer=None)(requests(40))

    np.testing.assert_array_equal(remote.scores, local.scores)
    assert remote.failures == local.failures == []


def test_calls_at_the_same_time_share_a_pass():
    sizes = []
    reward = build_reward(config_of().reward, policy_tokenizer=None)

    def slowly(given):
        sizes.append(len(given))
        time.sleep(0.2)
        return reward(given)

    with served(config_of(), slowly) as address, ThreadPoolExecutor(5) as callers:
        calls = [call(text, answer="12") for text in ("a", "b c", "12", "d e 12", "e")]
        answers = list(callers.map(post, [address] * 5, calls))

    assert [answer.json()["scores"] for answer in answers] == [[0.0], [-0.5], [1.0], [0.0], [0.0]]
    assert sum(sizes) == 5
    assert len(sizes) <= 3


def test_too_many_waiting_responses_are_answered_503_and_a_client_that_tries_again_gets_through(monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", TOKEN)
    reward = build_reward(config_of().reward, policy_tokenizer=None)
    refused = threading.Event()

    def slowly(given):
        if given:
            refused.wait(0.3)
        return reward(given)

    config = config_of(waiting_responses=1, responses_per_batch=1)
    with served(config, slowly) as address:
        with ThreadPoolExecutor(4) as callers:
            answers = callers.map(post, [address] * 4, [call("a", answer="b")] * 4)
            statuses = sorted(answer.status_code for answer in answers)
        source = HttpSource(url=f"{address}/score", row_fields=("answer",), responses_per_call=1, backoff_seconds=0.05)
        output = build_reward([source], policy_tokenizer=None)(requests(4))

    assert statuses[0] == 200
    assert statuses[-1] == 503
    assert np.isfinite(output.scores).all()


def test_a_refused_call_leaves_the_connection_usable_by_the_next():
    with served(config_of(call_bytes=1024)) as address, httpx2.Client(base_url=address, headers=WITH_TOKEN) as client:
        assert client.post("/score", content=b"x" * 5_000_000).status_code == 413
        assert client.post("/score", json=call("a"), headers={"Authorization": "Bearer no"}).status_code == 401
        assert client.get("/health").status_code == 200


def test_a_body_that_does_not_arrive_is_given_up():
    with served(config_of(receive_seconds=0.2)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            lines = ["POST /score HTTP/1.1", "Host: x", f"Authorization: Bearer {TOKEN}", "Content-Length: 99", "", "{"]
            connection.sendall("\r\n".join(lines).encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
