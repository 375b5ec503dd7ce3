"""Every error has a status and OpenAI's shape, and says what to do about it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx2 as httpx
import pytest
import redis
from tokenmill.gateway.errors import api_error, failure
from tokenmill.wire import errors
from tokenmill.wire.messages import Completion, ErrorInfo, Timings, Usage
from tokenmill.wire.store import BeginReply

from tests.gateway.asking import MESSAGES, chat, text
from tests.gateway.running import RunningGateway
from tests.support.hands import Hands, delta, failed
from tests.support.waiting import wait_until

CHAT = "/v1/chat/completions"


def _completion() -> Completion:
    error = ErrorInfo(code="engine_error", message="it broke")
    return Completion(
        request_id="q-1", finish_reason="error", choices=(), usage=Usage(), timings=Timings(), error=error
    )


OURS = [
    (errors.InvalidRequestError("no", param="seed"), 400, "invalid_request"),
    (errors.ConflictError("q-1"), 409, "conflict"),
    (errors.QueueBusyError("full", retry_after_s=2.4), 429, "queue_full"),
    (errors.PartitionsError("q", known=2, told=1), 503, "partitions"),
    (errors.UnavailableError("gone"), 503, "unavailable"),
    (errors.DecodeError("broken"), 500, "broken_result"),
    (errors.RequestFailedError("q-1", code="engine_error", message="", completion=_completion()), 500, "engine_error"),
    (errors.ResultTimeoutError("q-1", "late"), 504, "timeout"),
    (errors.UnknownRequestError("q-1", "who"), 404, "not_found"),
    (errors.JobLostError("q-1", "gone"), 500, "lost"),
    (errors.FencedError("late"), 500, "internal"),
]


@pytest.mark.parametrize(("error", "status", "code"), OURS, ids=lambda value: type(value).__name__)
def test_each_error_of_the_tree_has_a_status(error: errors.TokenmillError, status: int, code: str) -> None:
    answer = api_error(error)
    assert (answer.status, answer.code) == (status, code)
    assert answer.body()["error"].keys() == {"message", "type", "param", "code"}
    if status == 429:
        assert answer.headers["Retry-After"] == "2"


@pytest.mark.parametrize("code", ["out_of_memory", "non_finite_logits", "worker_crashed", "internal_error"])
def test_what_the_worker_could_not_do_is_no_fault_of_the_client(code: str) -> None:
    assert failure(code, "it broke").status == 500


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages"),
        (chat(temperature=-1), "temperature"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(n=1000), "n"),
        (chat(n="2"), "n"),
        (chat(stream="yes"), "stream"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(response_format={"type": "json_schema"}), "response_format"),
        (chat(max_token=5), "max_token"),
        (chat(logprobs=3), "logprobs"),
        (chat(top_logprobs=3), "top_logprobs"),
        (chat(x={"priority": "urgent"}), "priority"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": ["hello"]}, "messages[0]"),
    ],
)
def test_a_wrong_field_is_named(http: httpx.Client, body: dict[str, object], param: str) -> None:
    answer = http.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"5", b"\xff\xfe", b'{"messages": NaN}'])
def test_what_is_no_body_is_refused(http: httpx.Client, content: bytes) -> None:
    answer = http.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_paths_and_methods_that_are_not_there(http: httpx.Client) -> None:
    missing = http.get("/v1/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    assert http.delete(CHAT).status_code == 405
    embeddings = http.post("/v1/embeddings", json={"model": "echo", "input": "x"})
    assert (embeddings.status_code, embeddings.json()["error"]["code"]) == (404, "not_supported")


@pytest.mark.parametrize("headers", [{"Idempotency-Key": "no spaces"}, {"Last-Event-ID": "yesterday"}])
def test_a_wrong_header_is_named(http: httpx.Client, headers: dict[str, str]) -> None:
    answer = http.post(CHAT, json=chat(), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].lower() in {name.lower() for name in headers}


def test_no_page_of_another_origin_may_ask(http: httpx.Client) -> None:
    answer = http.get("/v1/models", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_readiness_wants_a_worker(http: httpx.Client, idle_gateway: RunningGateway) -> None:
    assert http.get("/readyz").status_code == http.get("/healthz").status_code == 200
    answer = httpx.get(f"{idle_gateway.url}/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_worker")


def test_what_fails_before_the_first_word_fails_a_stream_with_its_status(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", json=text(prompt="x" * 9000, stream=True))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_what_fails_later_is_an_event(idle_gateway: RunningGateway, hands: Hands) -> None:
    with opened(idle_gateway, hands) as (answer, begun):
        hands.finish(begun, failed("engine_error", "it broke"), state="failed")
        heard = answer.read().decode()
    assert '"code":"engine_error"' in heard
    assert "[DONE]" not in heard


def test_a_client_that_goes_takes_its_job(idle_gateway: RunningGateway, hands: Hands, server: redis.Redis) -> None:
    with opened(idle_gateway, hands) as (_, begun):
        pass
    key = hands.keys.job(begun.request_id)
    wait_until(lambda: server.hget(key, "cancel") == b"1", description="the job is asked to stop")


@contextmanager
def opened(gateway: RunningGateway, hands: Hands) -> Iterator[tuple[httpx.Response, BeginReply]]:
    """A stream that has told its first token; left when the block ends."""
    asked = {"messages": MESSAGES, "stream": True}
    with ThreadPoolExecutor(1) as working, httpx.Client(timeout=30) as client:
        beginning = working.submit(_begin, hands)
        with client.stream("POST", gateway.url + CHAT, json=asked) as answer:
            yield answer, beginning.result(timeout=30)


def _begin(hands: Hands) -> BeginReply:
    begun = hands.wait_for_work()
    hands.publish(begun, delta(0, "a", 1))
    return begun
