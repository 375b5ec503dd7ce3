"""Text completions as HTTP has them."""

import httpx2 as httpx
import pytest

from tests.gateway.asking import PROMPT, chunks_of, content_of, events_of, text

PATH = "/v1/completions"


def test_an_answer_in_one_piece_and_in_many(http: httpx.Client) -> None:
    whole = http.post(PATH, json=text()).json()
    assert whole["object"] == "text_completion"
    assert whole["id"].startswith("cmpl-")
    chunks = chunks_of(http.post(PATH, json=text(stream=True)).text)
    assert content_of(chunks) == whole["choices"][0]["text"]
    assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"] == "length"


def test_token_ids_are_a_prompt(http: httpx.Client) -> None:
    ids = list(PROMPT.encode())
    assert choices(http, prompt=ids) == choices(http) == choices(http, prompt=[ids])


def test_several_prompts_are_answered_together(http: httpx.Client) -> None:
    asked = text(prompt=[PROMPT, "And the sea?"], n=2, temperature=1, seed=5)
    whole = http.post(PATH, json=asked).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    assert whole["usage"]["completion_tokens"] == 48
    chunks = chunks_of(http.post(PATH, json=asked | {"stream": True}).text)
    assert [content_of(chunks, index) for index in range(4)] == [choice["text"] for choice in whole["choices"]]
    alone = http.post(PATH, json=asked | {"prompt": "And the sea?"}).json()["choices"]
    assert [choice["text"] for choice in alone] == [choice["text"] for choice in whole["choices"][2:]]


def test_a_stream_of_several_prompts_ends_with_one_that_fails(http: httpx.Client) -> None:
    answer = http.post(PATH, json=text(prompt=["short", "x" * 9000]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_echo_repeats_the_prompt(http: httpx.Client) -> None:
    plain = choices(http)[0]["text"]
    assert choices(http, echo=True)[0]["text"] == PROMPT + str(plain)
    assert content_of(chunks_of(http.post(PATH, json=text(echo=True, stream=True)).text)) == PROMPT + str(plain)


@pytest.mark.parametrize("fields", [{"prompt": [1, 2]}, {"logprobs": 1}])
def test_echo_of_what_only_the_tokenizer_knows_is_refused(http: httpx.Client, fields: dict[str, object]) -> None:
    answer = http.post(PATH, json=text(echo=True, **fields))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "echo")


def test_logprobs_tell_where_each_token_begins(http: httpx.Client) -> None:
    asked = text(max_tokens=40, logprobs=2)
    choice = http.post(PATH, json=asked).json()["choices"][0]
    told = choice["logprobs"]
    assert {len(one) for one in told.values()} == {40}
    assert told["text_offset"][0] == 0
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert token.startswith("bytes:") or choice["text"][offset] == token
    assert all(token in top for token, top in zip(told["tokens"], told["top_logprobs"], strict=True))
    chunks = chunks_of(http.post(PATH, json=asked | {"stream": True}).text)
    parts = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
    assert {name: [value for part in parts for value in part[name]] for name in told} == told


def test_a_resumed_stream_goes_on_with_its_offsets(http: httpx.Client) -> None:
    asked, headers = text(max_tokens=150, logprobs=1, stream=True), {"Idempotency-Key": "offsets"}
    heard = events_of(http.post(PATH, json=asked, headers=headers).text)
    rest = events_of(http.post(PATH, json=asked, headers={**headers, "Last-Event-ID": heard[0].id}).text)
    assert [(one.id, one.data and one.data["choices"]) for one in rest] == [
        (one.id, one.data and one.data["choices"]) for one in heard[1:]
    ]


def test_a_stream_of_several_prompts_is_not_resumed(http: httpx.Client) -> None:
    headers = {"Idempotency-Key": "many", "Last-Event-ID": "3-0"}
    answer = http.post(PATH, json=text(prompt=["a", "b"], stream=True), headers=headers)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


@pytest.mark.parametrize("prompt", [[], "", 5, None, [[]], ["a", 1], [""], {"a": 1}, [1.5], ["x"] * 1000])
def test_what_is_no_prompt_is_refused_by_name(http: httpx.Client, prompt: object) -> None:
    answer = http.post(PATH, json=text(prompt=prompt))
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt"), answer.text


def choices(http: httpx.Client, **fields: object) -> list[dict[str, object]]:
    answer = http.post(PATH, json=text(**fields))
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"])
