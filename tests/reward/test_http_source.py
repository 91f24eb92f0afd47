"""Scores over HTTP: batches, retries, deadlines, tokens; a response without an answer is dropped, never scored 0."""

import datetime
import logging
import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

from reward.composite import build_reward
from reward.config import HttpSource, RegexRule
from reward.http_source import EndpointError
from reward.interface import RewardRequest
from tests.reward.scripted_endpoint import Answer, Endpoint, serve_script

TOKEN = "s3cret-token"


@pytest.fixture
def endpoint():
    with serve_script(Endpoint()) as running:
        yield running


@pytest.fixture(autouse=True)
def _token(monkeypatch):
    monkeypatch.setenv("RLHF_REWARD_TOKEN", TOKEN)


def source(endpoint, **options: Any):
    settings: dict[str, Any] = {"backoff_seconds": 0.01, "timeout_seconds": 2.0} | options
    return HttpSource(url=endpoint.url, **settings)


def build(endpoint, **options):
    """The reward of the endpoint alone; what its start asked is forgotten."""
    reward = build_reward([source(endpoint, **options)], policy_tokenizer=None)
    endpoint.calls.clear()
    endpoint.headers.clear()
    return reward


def requests(*responses, **fields):
    return [RewardRequest("p", response, fields=fields) for response in responses]


def reasons_of(output):
    return {failure.index: failure.reason for failure in output.failures}


# --- calls ------------------------------------------------------------------------------------------------------------


def test_scores_come_back_in_order_over_several_calls(endpoint):
    output = build(endpoint, responses_per_call=2)(requests("a", "bbb", "cc", "dddd", "ee"))

    assert output.scores.tolist() == [1.0, 3.0, 2.0, 4.0, 2.0]
    assert output.components["http"].tolist() == output.scores.tolist()
    assert output.failures == []
    assert sorted(len(call["requests"]) for call in endpoint.calls) == [1, 2, 2]


def test_a_call_holds_text_and_the_columns_that_were_asked_for(endpoint):
    reward = build(endpoint, row_fields=("answer", "absent"))

    reward([RewardRequest("the prompt", "the response", fields={"answer": 12, "secret": "x"})])

    wire = {"prompt": "the prompt", "response": "the response", "fields": {"answer": 12}}
    assert endpoint.calls == [{"requests": [wire]}]
    assert endpoint.headers[0]["authorization"] == f"Bearer {TOKEN}"
    assert endpoint.headers[0]["content-type"] == "application/json"


def test_a_batch_without_requests_asks_nobody(endpoint):
    assert build(endpoint)([]).scores.shape == (0,)
    assert endpoint.calls == []


def test_calls_wait_together_up_to_the_bound(endpoint):
    endpoint.decide = lambda call: Answer(delay_seconds=0.15 * bool(call["requests"]))

    build(endpoint, responses_per_call=1, concurrent_calls=3)(requests(*"abcdefg"))

    assert endpoint.most_at_once == 3


def test_a_batch_in_many_calls_scores_like_one(endpoint):
    texts = [f"{'x' * (i % 7)}" for i in range(23)]
    whole = build(endpoint)(requests(*texts)).scores

    np.testing.assert_array_equal(build(endpoint, responses_per_call=1)(requests(*texts)).scores, whole)
    np.testing.assert_array_equal(build(endpoint, responses_per_call=5)(requests(*texts)).scores, whole)


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_the_endpoint_could_not_score_is_a_failure_with_its_reason(endpoint):
    reward = build(endpoint)
    endpoint.script = [Answer(body={"scores": [1.5, None, 2], "failures": [{"index": 1, "reason": "too long"}]})]

    output = reward(requests("a", "b", "c"))

    np.testing.assert_array_equal(output.scores, np.array([1.5, np.nan, 2.0], np.float32))
    assert reasons_of(output) == {1: "http: too long"}


def test_a_score_that_is_called_failed_is_none(endpoint):
    reward = build(endpoint)
    endpoint.script = [Answer(body={"scores": [0.0, 1.0], "failures": [{"index": 0, "reason": "timed out"}]})]

    np.testing.assert_array_equal(reward(requests("a", "b")).scores, [np.nan, 1.0])


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_passing_failure_is_tried_again(endpoint, status):
    reward = build(endpoint, retries=2)
    endpoint.script = [Answer(status), Answer(status)]

    assert reward(requests("abc")).scores.tolist() == [3.0]
    assert len(endpoint.calls) == 3


def test_attempts_are_bounded_and_their_failure_costs_only_that_call(endpoint):
    reward = build(endpoint, retries=2, responses_per_call=1)
    endpoint.decide = lambda call: Answer(503 if call["requests"][0]["response"] == "bad" else 200)

    output = reward(requests("a", "bad", "ccc"))

    np.testing.assert_array_equal(output.scores, [1.0, np.nan, 3.0])
    assert reasons_of(output) == {1: "http: HTTP 503 Service Unavailable (3 attempts)"}
    assert len(endpoint.calls) == 5


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(404), "HTTP 404 Not Found"),
        (Answer(307, headers={"Location": "http://127.0.0.1:1/"}), "HTTP 307 Temporary Redirect"),
        (Answer(204), "HTTP 204 No Content"),
        (Answer(body=b"<html>"), "answered no scores: Invalid JSON"),
        (Answer(body={"score": [1.0]}), "answered no scores: scores: Field required"),
        (Answer(body={"scores": [True]}), "answered no scores: scores.0: Input should be a valid number"),
        (Answer(body={"scores": ["1.0"]}), "answered no scores: scores.0: Input should be a valid number"),
        (Answer(body={"scores": [1.0, 2.0]}), "answered 2 scores for 1 responses"),
        (Answer(body=b'{"scores": [NaN]}'), "the endpoint gave no finite score"),
        (Answer(body={"scores": [1e300]}), "the endpoint gave no finite score"),
        (Answer(body={"scores": [None]}), "the endpoint gave no finite score"),
    ],
)
def test_an_answer_that_is_no_score_is_not_asked_for_again(endpoint, answer, reason):
    reward = build(endpoint)
    endpoint.script = [answer]

    output = reward(requests("abc"))

    assert np.isnan(output.scores).all()
    assert reasons_of(output)[0].startswith(f"http: {reason}")
    assert len(endpoint.calls) == 1


def test_a_slow_answer_times_out_and_is_tried_again(endpoint):
    reward = build(endpoint, timeout_seconds=0.5, retries=1)
    endpoint.script = [Answer(delay_seconds=1.0)]

    assert reward(requests("abc")).scores.tolist() == [3.0]
    assert len(endpoint.calls) == 2


def test_an_answer_that_comes_byte_by_byte_times_out_too(endpoint):
    reward = build(endpoint, timeout_seconds=0.3, retries=0)
    endpoint.script = [Answer(drip_seconds=0.2)]
    started = time.monotonic()

    output = reward(requests("abc"))

    assert reasons_of(output) == {0: "http: no answer within 0.3 s (1 attempt)"}
    assert time.monotonic() - started < 2.0, "a whole answer would take more than 3 s"


def test_an_answer_without_end_is_cut_off(endpoint, monkeypatch):
    monkeypatch.setattr("reward.http_client.ANSWER_BYTES", 1000)
    reward = build(endpoint)
    endpoint.script = [Answer(body=b"x" * 5000)]

    assert reasons_of(reward(requests("a"))) == {0: "http: answered more than 1000 bytes"}


def test_the_deadline_bounds_a_whole_batch(endpoint):
    reward = build(endpoint, deadline_seconds=1.0, responses_per_call=1, concurrent_calls=1, retries=9)
    endpoint.decide = lambda _call: Answer(delay_seconds=0.4)
    started = time.monotonic()

    output = reward(requests(*"abcdefgh"))

    assert output.scores[0] == 1.0
    assert np.isnan(output.scores[3:]).all()
    assert reasons_of(output)[7] == "http: no time left of deadline_seconds=1"
    assert time.monotonic() - started < 2.5, "all calls would take more than 3 s"


def test_waits_double_and_the_endpoint_may_ask_for_more(endpoint):
    reward = build(endpoint, backoff_seconds=0.05, retries=2)
    endpoint.script = [Answer(503), Answer(503)]
    started = time.monotonic()
    reward(requests("a"))
    assert 0.15 <= time.monotonic() - started < 1.0

    endpoint.script = [Answer(503, headers={"Retry-After": "1"})]
    started = time.monotonic()
    reward(requests("a"))
    assert time.monotonic() - started >= 1.0


def test_a_row_that_json_cannot_hold_fails_alone(endpoint):
    reward = build(endpoint, row_fields=("when",))
    rows = [{"when": datetime.datetime(2026, 1, 1)}, {"when": "then"}]

    output = reward([RewardRequest("p", "ab", fields=fields) for fields in rows])

    np.testing.assert_array_equal(output.scores, [np.nan, 2.0])
    assert reasons_of(output) == {0: "http: its columns ['when'] hold what JSON cannot"}


def test_a_source_that_only_watches_may_fail(endpoint):
    sources = [source(endpoint, weight=0.0, name="judge", retries=0), RegexRule(pattern="a")]
    reward = build_reward(sources, policy_tokenizer=None)
    endpoint.script = [Answer(500)]

    output = reward(requests("a"))

    assert output.scores.tolist() == [1.0]
    assert output.failures == []
    assert np.isnan(output.components["judge"]).all()


# --- start ------------------------------------------------------------------------------------------------------------


def test_the_start_asks_without_requests(endpoint):
    build_reward([source(endpoint)], policy_tokenizer=None)

    assert endpoint.calls == [{"requests": []}]


def test_a_start_waits_for_an_endpoint_that_is_starting(endpoint):
    endpoint.script = [Answer(503), Answer(503)]

    build_reward([source(endpoint)], policy_tokenizer=None)

    assert len(endpoint.calls) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(401), r"HTTP 401 Unauthorized; .* refuses the token in RLHF_REWARD_TOKEN"),
        (Answer(404), r"HTTP 404 Not Found; correct the path of reward\.url \(.* /score\)"),
        (Answer(body=b"hello"), r"answered no scores: Invalid JSON.*; .*reward\.http_protocol"),
        (Answer(body={"scores": [1.0]}), r"answered 1 scores for 0 responses"),
    ],
)
def test_an_endpoint_that_will_never_score_stops_the_start(endpoint, answer, message):
    endpoint.script = [answer]

    with pytest.raises(EndpointError, match=rf"reward\.url='http://127\.0\.0\.1:\d+/score': {message}") as refused:
        build_reward([source(endpoint)], policy_tokenizer=None)

    assert TOKEN not in str(refused.value)


def test_nobody_at_the_address_stops_the_start():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

    with pytest.raises(EndpointError, match=r"onnection refused.* \(2 attempts\); start it"):
        build_reward(
            [HttpSource(url=f"http://127.0.0.1:{port}/score", retries=1, backoff_seconds=0.01)], policy_tokenizer=None
        )


@pytest.mark.parametrize(
    ("value", "message"), [(None, "is not set; export"), ("", "is not set"), ("a b", "white space")]
)
def test_a_token_comes_from_the_environment_or_not_at_all(endpoint, monkeypatch, value, message):
    monkeypatch.delenv("RLHF_REWARD_TOKEN")
    if value is not None:
        monkeypatch.setenv("RLHF_REWARD_TOKEN", value)

    with pytest.raises(ValueError, match=rf"RLHF_REWARD_TOKEN.*{message}"):
        build_reward([source(endpoint)], policy_tokenizer=None)

    build(endpoint, token_variable=None)(requests("a"))
    assert "authorization" not in endpoint.headers[0]


def test_a_token_reaches_no_log_and_no_reason(endpoint, caplog):
    with caplog.at_level(logging.DEBUG):
        reward = build(endpoint)
        echo = {"scores": [None], "failures": [{"index": 0, "reason": f"bad token {TOKEN}"}]}
        endpoint.script = [Answer(body=echo)]
        output = reward(requests("a"))

    assert reasons_of(output) == {0: "http: bad token [token]"}
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8801/score", "is no address"),
        ("ftp://host/score", "is no address"),
        ("http:///score", "is no address"),
        ("http://host:99999/", "Port out of range"),
        ("http://user:hidden@host/score", "user, password or token"),
        ("http://host/score?api_key=hidden", "user, password or token"),
    ],
)
def test_an_address_is_checked_and_holds_no_secret(url, message):
    with pytest.raises(ValueError, match=message):
        HttpSource(url=url)


def test_interrupting_a_batch_does_not_wait_for_its_retries(endpoint, monkeypatch):
    reward = build(endpoint, responses_per_call=1, concurrent_calls=2, backoff_seconds=5.0)
    endpoint.decide = lambda _call: Answer(503)
    started = time.monotonic()

    def interrupt(*_arguments):
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr("reward.http_source._gathered", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reward(requests(*"abcd"))

    assert time.monotonic() - started < 1.0
    while any(thread.name.startswith("score-call") for thread in threading.enumerate()):
        assert time.monotonic() - started < 2.0, "a thread still waits for its next attempt"
        time.sleep(0.02)
