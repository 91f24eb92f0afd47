"""A judge behind an endpoint: what it is asked, how replies are read, what is kept, and what failure leaves behind."""

import time
from typing import Any

import pytest
from pydantic import ValidationError

from reward.http_source import EndpointError
from rlhf.evaluation.comparing import judge_both_orders
from rlhf.evaluation.config import EndpointJudge
from rlhf.evaluation.endpoint_judge import EndpointVerdicts, ReplyStore, read_choice
from tests.reward.scripted_endpoint import Answer, Endpoint, serve_script

KEY = "sk-very-secret"
TEMPLATE = "{prompt}|{answer_a}|{answer_b}"


@pytest.fixture
def endpoint():
    with serve_script(Endpoint()) as running:
        yield running


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("RLHF_JUDGE_KEY", KEY)


def completion(text) -> Answer:
    return Answer(body={"id": "x", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def longer(call) -> Answer:
    """Prefers the longer answer; says so at length."""
    _, a, b = call["messages"][0]["content"].split("|")
    return completion(f"I compare a with b.\nVerdict: {'A' if len(a) > len(b) else 'B' if len(b) > len(a) else 'tie'}")


def build(endpoint, folder, **options: Any):
    settings: dict[str, Any] = {
        "base_url": endpoint.url.removesuffix("/score") + "/v1",
        "model": "judge-1",
        "template": TEMPLATE,
        "backoff_seconds": 0.01,
        "timeout_seconds": 2.0,
    }
    return EndpointVerdicts(EndpointJudge(**(settings | options)), ReplyStore(folder / "replies.jsonl"))


def test_pairs_are_asked_in_both_orders_with_key_and_parameters(endpoint, tmp_path):
    endpoint.decide = longer

    found = judge_both_orders(build(endpoint, tmp_path), ["p", "q"], ["long one", "s"], ["short", "longer"])

    assert found.outcomes.tolist() == [1.0, 0.0]
    assert found.consistency == 1.0
    asked = sorted(call["messages"][0]["content"] for call in endpoint.calls)
    assert asked == ["p|long one|short", "p|short|long one", "q|longer|s", "q|s|longer"]
    assert {(call["model"], call["temperature"]) for call in endpoint.calls} == {("judge-1", 0)}
    assert {headers["authorization"] for headers in endpoint.headers} == {f"Bearer {KEY}"}


def test_texts_that_look_like_placeholders_stay_texts(endpoint, tmp_path):
    endpoint.decide = lambda _call: completion("A")
    build(endpoint, tmp_path)(["{answer_b}"], ["{prompt}"], ["b"])
    assert endpoint.calls[0]["messages"][0]["content"] == "{answer_b}|{prompt}|b"


def test_a_reply_is_paid_for_once_also_by_the_next_process(endpoint, tmp_path):
    endpoint.decide = longer
    first = build(endpoint, tmp_path)(["p"], ["aa"], ["b"])
    calls = len(endpoint.calls)

    again = build(endpoint, tmp_path)(["p", "p"], ["aa", "aaa"], ["b", "b"])

    assert first.choices == ["A"]
    assert again.choices == ["A", "A"]
    assert len(endpoint.calls) == calls + 1
    # Another model, or another parameter, is another question.
    build(endpoint, tmp_path, model="judge-2")(["p"], ["aa"], ["b"])
    build(endpoint, tmp_path, parameters={"temperature": 1})(["p"], ["aa"], ["b"])
    assert len(endpoint.calls) == calls + 3
    assert KEY not in (tmp_path / "replies.jsonl").read_text()


def test_what_fails_is_dropped_with_its_reason_and_asked_again_next_time(endpoint, tmp_path):
    def decide(call):
        prompt = call["messages"][0]["content"].split("|")[0]
        answers = {
            "refuse": Answer(status=400, body={}),
            "mumble": completion(f"hard to say, {KEY}"),
            "empty": Answer(body={"choices": []}),
            "null": completion(None),
        }
        return answers.get(prompt) or completion("tie")

    endpoint.decide = decide
    found = build(endpoint, tmp_path)(["refuse", "mumble", "fine", "empty", "null"], ["a"] * 5, ["b"] * 5)

    assert found.choices == [None, None, "tie", None, None]
    assert found.reasons == {
        0: "HTTP 400 Bad Request",
        1: "the reply names no winner: 'hard to say, [key]'",
        3: "answered no chat completion",
        4: "answered no chat completion",
    }
    endpoint.decide = lambda _call: completion("B")
    assert build(endpoint, tmp_path)(["refuse"], ["a"], ["b"]).choices == ["B"]


def test_a_busy_endpoint_is_tried_again_and_a_silent_one_given_up(endpoint, tmp_path):
    endpoint.script = [Answer(status=429, body={}), Answer(status=503, body={}), completion("A")]
    assert build(endpoint, tmp_path, retries=2)(["p"], ["a"], ["b"]).choices == ["A"]
    assert len(endpoint.calls) == 3

    endpoint.decide = lambda _call: Answer(delay_seconds=0.5)
    start = time.monotonic()
    found = build(endpoint, tmp_path, timeout_seconds=0.1, retries=1)(["q"], ["a"], ["b"])
    assert time.monotonic() - start < 2
    assert found.choices == [None]
    assert "no answer within" in found.reasons[0]


def test_calls_wait_together_and_no_more_than_allowed(endpoint, tmp_path):
    endpoint.decide = lambda _call: Answer(body=completion("A").body, delay_seconds=0.05)
    build(endpoint, tmp_path, concurrent_calls=3)([str(n) for n in range(12)], ["a"] * 12, ["b"] * 12)
    assert endpoint.most_at_once == 3


def test_a_wrong_key_or_address_is_known_before_anything_else(endpoint, tmp_path, monkeypatch):
    endpoint.decide = lambda _call: Answer(status=401, body={})
    with pytest.raises(EndpointError, match=r"^judges\.base_url=.*HTTP 401.*set RLHF_JUDGE_KEY to a key") as caught:
        build(endpoint, tmp_path).require_reachable()
    assert KEY not in str(caught.value)
    monkeypatch.delenv("RLHF_JUDGE_KEY")
    with pytest.raises(ValueError, match=r"^judges\.key_variable=RLHF_JUDGE_KEY.*not set"):
        build(endpoint, tmp_path)
    endpoint.decide = lambda _call: completion("A")
    build(endpoint, tmp_path, key_variable=None).require_reachable()
    assert "authorization" not in endpoint.headers[-1]


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("A", "A"),
        (" b.\n", "B"),
        ("**Tie**", "tie"),
        ("Answer A is shorter but B is right.\n\n[[B]]", "B"),
        ("[[A]] at first, but then [[C]]", "tie"),
        ("Reasons.\nVerdict: B", "B"),
        ("The better answer is A.", "A"),
        ("Answer B", "B"),
        ("<think>A, surely. Verdict: A</think>\nB", "B"),
        ("A dog is an animal", None),
        ("Neither is good", None),
        ("A or B", None),
        ("", None),
    ],
)
def test_replies_are_read_where_they_are_clear(reply, choice):
    assert read_choice(reply) == choice


def test_a_template_without_an_answer_and_an_address_with_a_key_are_refused():
    with pytest.raises(ValueError, match=r"lacks \{answer_b\}"):
        EndpointJudge(base_url="http://x/v1", model="m", template="{prompt}{answer_a}")
    with pytest.raises(ValueError, match="base_url: url holds a user, password or token") as caught:
        EndpointJudge(base_url="http://me:s3cret@x/v1", model="m")
    assert isinstance(caught.value, ValidationError)
    assert "s3cret" not in caught.value.errors()[0]["msg"]
