"""Chat completions as HTTP has them: whole, streamed, and refused."""

import httpx2 as httpx
import pytest

from tests.gateway.asking import MESSAGES, Event, chat, chunks_of, content_of, events_of

PATH = "/v1/chat/completions"


def test_an_answer_in_one_piece(http: httpx.Client) -> None:
    answer = http.post(PATH, json=chat())
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["object"] == "chat.completion"
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 12
    assert body["usage"]["total_tokens"] == 12 + body["usage"]["prompt_tokens"]


def test_a_stream_says_what_the_answer_in_one_piece_says(http: httpx.Client) -> None:
    whole = http.post(PATH, json=chat()).json()
    answer = http.post(PATH, json=chat(stream=True, stream_options={"include_usage": True}))
    assert answer.headers["content-type"].startswith("text/event-stream")
    *chunks, last = chunks_of(answer.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert content_of(chunks) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]) == ([], whole["usage"])


def test_a_stream_tells_no_usage_unasked(http: httpx.Client) -> None:
    chunks = chunks_of(http.post(PATH, json=chat(stream=True)).text)
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_several_choices_are_streamed_side_by_side(http: httpx.Client) -> None:
    asked = chat(n=3, temperature=1, seed=7)
    whole = http.post(PATH, json=asked).json()
    chunks = chunks_of(http.post(PATH, json=asked | {"stream": True}).text)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert [content_of(chunks, index) for index in range(3)] == [
        choice["message"]["content"] for choice in whole["choices"]
    ]
    assert len({content_of(chunks, index) for index in range(3)}) > 1


def test_logprobs_name_tokens_by_text_and_bytes(http: httpx.Client) -> None:
    asked = chat(logprobs=True, top_logprobs=2, max_tokens=30)
    choice = http.post(PATH, json=asked).json()["choices"][0]
    told = choice["logprobs"]["content"]
    assert len(told) == 30
    assert all(len(token["top_logprobs"]) == 2 and token["logprob"] <= 0 for token in told)
    raw = bytes(byte for token in told for byte in token["bytes"])
    assert raw.decode(errors="replace").startswith(choice["message"]["content"][:-1])
    chunks = chunks_of(http.post(PATH, json=asked | {"stream": True}).text)
    streamed = [chunk["choices"][0]["logprobs"]["content"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert [token for tokens in streamed for token in tokens] == told


def test_stop_ends_an_answer(http: httpx.Client) -> None:
    content = http.post(PATH, json=chat(max_tokens=40)).json()["choices"][0]["message"]["content"]
    stop = content[5:7]
    (choice,) = http.post(PATH, json=chat(max_tokens=40, stop=[stop])).json()["choices"]
    assert choice["message"]["content"] == content[: content.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_sampling_fields_reach_the_model(http: httpx.Client) -> None:
    fields = {
        "temperature": 0.9,
        "top_p": 0.8,
        "seed": 3,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"65": 100},
        "max_completion_tokens": 4,
        "user": "somebody",
        "metadata": {"of": "ours"},
        "store": False,
        "top_k": 40,
        "x": {"priority": "high", "deadline_s": 30},
    }
    answer = http.post(PATH, json={"messages": MESSAGES, **fields})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "AAAA"
    assert body["model"] == "echo"


def test_an_answer_that_ran_out_of_time_says_so(http: httpx.Client) -> None:
    answer = http.post(PATH, json=chat(max_tokens=8000, x={"deadline_s": 0.05})).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["x"] == {"finish_reason": "expired"}


def test_the_same_key_is_the_same_answer(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "the-one"}
    first = http.post(PATH, json=chat(temperature=1), headers=headers).json()
    again = http.post(PATH, json=chat(temperature=1), headers=headers).json()
    assert first["id"] == again["id"] == "chatcmpl-the-one"
    assert first["choices"] == again["choices"]
    other = http.post(PATH, json=chat(max_tokens=3), headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_who_reconnects_misses_nothing_and_hears_nothing_twice(http: httpx.Client, method: str) -> None:
    headers = {"Idempotency-Key": f"again-{method}"}
    asked = chat(max_tokens=200, n=2, temperature=1, stream=True, stream_options={"include_usage": True})
    heard = events_of(http.post(PATH, json=asked, headers=headers).text)
    places = [place for place, event in enumerate(heard) if event.id]
    for place in (places[0], places[len(places) // 2], places[-3], places[-1]):
        headers["Last-Event-ID"] = heard[place].id
        path, body = (f"{PATH}/chatcmpl-again-GET?stream=true", None) if method == "GET" else (PATH, asked)
        rest = events_of(http.request(method, path, json=body, headers=headers).text)
        assert [told(event) for event in rest] == [told(event) for event in heard[place + 1 :] or heard[-1:]]


def told(event: Event) -> tuple[str, object]:
    return event.id, event.data and (event.data["choices"], event.data["usage"])


def test_an_answer_can_be_read_again_by_its_id(http: httpx.Client) -> None:
    first = http.post(PATH, json=chat()).json()
    again = http.get(f"{PATH}/{first['id']}").json()
    assert (again["id"], again["choices"], again["usage"]) == (first["id"], first["choices"], first["usage"])
    unknown = http.get(f"{PATH}/chatcmpl-nobody")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
