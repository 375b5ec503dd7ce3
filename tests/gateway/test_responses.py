"""/v1/responses with the real `openai` package: whole, streamed, in the background, resumed, cancelled, deleted."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.gateway.running import RunningGateway
from tests.support.hands import Hands, delta, done, failed
from tests.support.waiting import wait_until

ASKED: dict[str, Any] = {"model": "echo", "input": "Why is the sky blue?", "temperature": 0, "max_output_tokens": 12}


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.v1, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def idle(idle_gateway: RunningGateway) -> Iterator[OpenAI]:
    """In front of `hands` alone."""
    with OpenAI(base_url=idle_gateway.v1, api_key="none", max_retries=0) as client:
        yield client


def test_an_answer_in_one_piece_can_be_asked_for_again(client: OpenAI) -> None:
    response = client.responses.create(**ASKED, metadata={"a": "b"})
    assert (response.status, response.incomplete_details and response.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    assert client.responses.retrieve(response.id) == response


def test_a_stream_says_what_the_answer_in_one_piece_says(client: OpenAI) -> None:
    whole = client.responses.create(**ASKED)
    events = list(client.responses.create(**ASKED, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].type == "response.incomplete"
    assert text == events[-1].response.output_text == whole.output_text


def test_the_package_s_own_accumulator_follows_the_events(idle: OpenAI, hands: Hands) -> None:
    with idle.responses.stream(model="echo", input="hello", timeout=30) as stream:
        begun = hands.begin_next()
        hands.publish(begun, delta(0, "Hel", 1))
        hands.finish(begun, done("Hello", 2)._replace(finish_reason="stop"), delta(1, "lo", 2))
        final = stream.get_final_response()
    assert (final.status, final.output_text) == ("completed", "Hello")


def test_the_asyncio_client_streams_too(gateway: RunningGateway) -> None:
    async def main() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=gateway.v1, api_key="none", max_retries=0) as client:
            whole = await client.responses.create(**ASKED)
            stream = await client.responses.create(**ASKED, stream=True)
            texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            return whole.output_text, "".join(texts)

    whole, streamed = asyncio.run(main())
    assert whole == streamed


def test_a_background_response_is_polled_through_its_states(idle: OpenAI, hands: Hands) -> None:
    response = idle.responses.create(**ASKED, background=True)
    assert (response.status, response.output, response.background) == ("queued", [], True)
    begun = hands.begin_next()
    assert idle.responses.retrieve(response.id).status == "in_progress"
    hands.finish(begun, done("ab", 1)._replace(finish_reason="stop"), delta(0, "ab", 1))
    final = idle.responses.retrieve(response.id)
    assert (final.status, final.output_text, final.created_at) == ("completed", "ab", response.created_at)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_response_is_resumed_after_any_event(idle: OpenAI, hands: Hands, is_streamed: bool) -> None:
    """Also one that was created without `stream`, which OpenAI refuses."""
    made: Any = idle.responses.create(**ASKED, background=True, stream=is_streamed)
    response_id = next(iter(made)).response.id if is_streamed else made.id
    begun = hands.begin_next()
    hands.publish(begun, delta(0, "one ", 1))
    with idle.responses.retrieve(response_id, stream=True) as stream:
        seen = [next(iter(stream)) for _ in range(6)]
    assert seen[-1].type == "response.output_text.delta"
    hands.publish(begun, delta(1, "two ", 2))
    hands.finish(begun, done("one two three", 3), delta(2, "three", 3))
    whole = list(idle.responses.retrieve(response_id, stream=True))
    assert whole[: len(seen)] == seen
    for after in (0, 5, 6, len(whole) - 1, len(whole) + 7):
        rest = list(idle.responses.retrieve(response_id, stream=True, starting_after=after))
        assert rest == whole[after + 1 :]


def test_a_browser_resumes_with_the_id_of_the_last_event(gateway: RunningGateway, client: OpenAI) -> None:
    response = client.responses.create(**ASKED)
    url = f"{gateway.v1}/responses/{response.id}?stream=true"
    whole = httpx.get(url).text
    head = whole[: whole.index("\n\n", whole.index("id: 4\n")) + 2]
    assert httpx.get(url, headers={"Last-Event-ID": "4"}).text == whole[len(head) :]


@pytest.mark.parametrize("is_background", [True, False])
def test_a_waiting_response_is_cancelled_at_once(idle: OpenAI, is_background: bool) -> None:
    events = iter(idle.responses.create(**ASKED, background=is_background, stream=True))
    response_id = next(events).response.id
    cancelled = idle.responses.cancel(response_id)
    assert (cancelled.status, cancelled.output) == ("cancelled", [])
    assert [event.type for event in events][-1] == "response.cancelled"
    assert idle.responses.cancel(response_id) == cancelled


def test_a_running_response_keeps_what_it_had_when_cancelled(client: OpenAI) -> None:
    made = client.responses.create(**(ASKED | {"max_output_tokens": 100_000}), background=True)
    with client.responses.retrieve(made.id, stream=True) as stream:
        first = next(event.delta for event in stream if event.type == "response.output_text.delta")
    cancelled = client.responses.cancel(made.id)
    assert cancelled.status == "cancelled"
    assert cancelled.output_text.startswith(first)


def test_a_deleted_response_is_gone(client: OpenAI, idle: OpenAI) -> None:
    response = client.responses.create(**ASKED)
    waiting = idle.responses.create(**ASKED, background=True)
    for made, its_client in ((response, client), (waiting, idle)):
        its_client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            its_client.responses.retrieve(made.id)


def test_a_conversation_goes_on_from_the_previous_response(idle: OpenAI, hands: Hands) -> None:
    first = idle.responses.create(model="echo", input="hello", instructions="Be brief.", background=True)
    hands.finish(hands.begin_next(), done("Hi!", 1), delta(0, "Hi!", 1))
    second = idle.responses.create(
        model="echo", input="Who?", instructions="Rhyme.", previous_response_id=first.id, background=True
    )
    assert second.previous_response_id == first.id
    body = hands.begin_next().body.decode()
    turns = ['"Rhyme."', '"hello"', '"Hi!"', '"Who?"']
    assert [body.index(turn) for turn in turns] == sorted(body.index(turn) for turn in turns)
    assert "brief" not in body


def test_what_cannot_be_gone_on_with_is_said_by_name(idle: OpenAI) -> None:
    waiting = idle.responses.create(**ASKED, background=True)
    for previous in (waiting.id, "resp_none", "nothing"):
        with pytest.raises(openai.BadRequestError) as refused:
            idle.responses.create(**ASKED, previous_response_id=previous)
        assert refused.value.param == "previous_response_id"


def test_a_failure_has_a_status_of_its_own_and_is_told_in_a_stream(idle: OpenAI, hands: Hands) -> None:
    events: Any = iter(idle.responses.create(**ASKED, stream=True))
    response_id = next(events).response.id
    hands.finish(hands.begin_next(), failed("engine_error", "it broke"), state="failed")
    assert [event.type for event in events][-1] == "response.failed"
    response = idle.responses.retrieve(response_id)
    assert response.error is not None
    assert (response.status, response.error.code) == ("failed", "server_error")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**(ASKED | fields))
    assert refused.value.param == param


def test_a_client_that_goes_away_cancels_its_job_unless_it_said_otherwise(idle: OpenAI, hands: Hands) -> None:
    plain, kept, background = (
        idle.responses.create(**ASKED, stream=True, **more)
        for more in ({}, {"extra_body": {"x": {"on_detach": "continue"}}}, {"background": True})
    )
    ids = {}
    for name, stream in (("kept", kept), ("background", background), ("plain", plain)):
        ids[name] = next(iter(stream)).response.id
        stream.close()
    wait_until(lambda: idle.responses.retrieve(ids["plain"]).status == "cancelled", description="it is cancelled")
    assert [idle.responses.retrieve(ids[name]).status for name in ("kept", "background")] == ["queued", "queued"]


def test_who_has_reconnected_is_not_cancelled_by_the_loss_of_the_old_connection(idle: OpenAI, hands: Hands) -> None:
    first: Any = idle.responses.create(**ASKED, stream=True)
    response_id = next(iter(first)).response.id
    second = iter(idle.responses.retrieve(response_id, stream=True, starting_after=0))
    next(second)
    first.close()
    begun = hands.begin_next()
    hands.finish(begun, done("ab", 1), delta(0, "ab", 1))
    assert [event.type for event in second][-1] == "response.incomplete"
