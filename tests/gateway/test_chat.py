"""Chat completions as HTTP has them: whole, streamed, and refused."""

import json
from typing import Any

import httpx2 as httpx

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]


def asked(**fields: object) -> dict[str, object]:
    return {"model": "echo", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **fields}


def chunks_of(body: str) -> list[dict[str, Any]]:
    """The data of every event but the last, which is [DONE]."""
    data = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(one) for one in data[:-1]]


def test_an_answer_in_one_piece(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=asked())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 12


def test_a_stream_says_what_the_answer_in_one_piece_says(http: httpx.Client) -> None:
    whole = http.post("/v1/chat/completions", json=asked()).json()
    answer = http.post("/v1/chat/completions", json=asked(stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = chunks_of(answer.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_a_wrong_model_is_not_found(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json=asked(model="gpt-9"))
    assert answer.status_code == 404
    assert answer.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
