"""The real `openai` package, unchanged, against the gateway: blocking, asyncio, streaming, errors."""

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.gateway.asking import PROMPT
from tests.gateway.running import RunningGateway

TURNS: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": PROMPT}]


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.v1, api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_a_chat_completion(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=TURNS, max_tokens=9, n=2, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18
    assert answer._request_id == answer.id.removeprefix("chatcmpl-")
    again = client.chat.completions.retrieve(answer.id)
    assert again.choices == answer.choices


def test_a_streamed_chat_completion(client: openai.OpenAI) -> None:
    asked = {"model": "echo", "messages": TURNS, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**asked)  # type: ignore[call-overload]  # options shared by two calls
    stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]  # as above
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_the_stream_helper_puts_the_answer_together(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="echo", messages=TURNS, temperature=0)
    stop = (whole.choices[0].message.content or "")[30:32]
    with client.chat.completions.stream(
        model="echo", messages=TURNS, temperature=0, logprobs=True, top_logprobs=2, stop=stop
    ) as stream:
        told = [event.delta for event in stream if event.type == "content.delta"]
        choice = stream.get_final_completion().choices[0]
    assert choice.message.content == "".join(told)
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None


def test_a_text_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt=[PROMPT, "And the sea?"], max_tokens=5, logprobs=1)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.text_offset or ()) == 5
    parts = list(client.completions.create(model="echo", prompt=PROMPT, max_tokens=5, stream=True))
    assert parts[-1].choices[0].finish_reason == "length"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo"]
    assert client.models.retrieve("echo").owned_by == "tokenmill"


def test_our_own_options_go_in_the_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo",
        messages=TURNS,
        max_tokens=3,
        extra_body={"top_k": 5, "x": {"priority": "high", "deadline_s": 20}},
        extra_headers={"Idempotency-Key": "extra-body"},
    )
    assert answer.id == "chatcmpl-extra-body"


def test_errors_are_the_packages_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=TURNS)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="echo", messages=TURNS, response_format={"type": "json_object"})
    assert refused.value.param == "response_format"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="echo", input="hello")


def test_many_at_once_by_asyncio(gateway: RunningGateway) -> None:
    async def ask(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(
            model="echo", messages=TURNS, max_tokens=20, seed=seed, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=gateway.v1, api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed) for seed in range(50)))

    texts = asyncio.run(asyncio.wait_for(main(), timeout=60))
    assert len(set(texts)) > 40
