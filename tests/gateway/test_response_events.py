"""The events of a response, as OpenAI's own types read them: complete, numbered alike for everybody, resumable."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tokenmill.gateway.responses.events import Event, ResponseEvents
from tokenmill.gateway.responses.view import Asked
from tokenmill.wire.messages import Choice, Completion, Delta, ErrorInfo, FinishReason, Timings, Usage, stream_id

ASKED = Asked(created_at=1_700_000_000, model="echo", temperature=0.0)
IN_BACKGROUND = ASKED.model_copy(update={"background": True})
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def delta(offset: int, text: str, *, epoch: int = 0, is_restart: bool = False) -> Delta:
    name = stream_id(epoch, offset + 1)
    return Delta(offset=offset, text=text, token_ids=(7,), entry_id=name, is_restart=is_restart)


def last_word(text: str, reason: FinishReason = "stop", *, error: ErrorInfo | None = None) -> Completion:
    return Completion(
        request_id="q-1",
        finish_reason=reason,
        choices=(Choice(text=text, token_ids=()),),
        usage=Usage(prompt_tokens=2, completion_tokens=len(text)),
        timings=Timings(total=9_000.0),
        error=error,
    )


def told(deltas: list[Delta], completion: Completion, *, asked: Asked = ASKED, after: int = -1) -> list[Event]:
    events = ResponseEvents("q-1", asked, after=after)
    told = list(events.opening())
    for news in deltas:
        told += events.add(news)
    return [*told, *events.end(completion)]


def types(events: list[Event]) -> list[str]:
    return [event.type.removeprefix("response.") for event in events]


def last_response(events: list[Event]) -> Response:
    return Response.model_validate(json.loads(events[-1].data)["response"], strict=True)


def test_an_answer_is_told_in_the_order_that_clients_know() -> None:
    events = told([delta(0, "a"), delta(1, ""), delta(2, "bc")], last_word("abc"))
    assert types(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    for event in events:
        read = EVENT.validate_json(event.data)
        assert (read.type, read.sequence_number) == (event.type, event.sequence_number)
    response = last_response(events)
    assert (response.status, response.output_text, response.completed_at) == ("completed", "abc", 1_700_000_009)
    assert response.usage is not None
    assert response.usage.total_tokens == 5


def test_a_background_response_begins_queued() -> None:
    events = told([delta(0, "a")], last_word("a"), asked=IN_BACKGROUND)
    assert types(events)[:3] == ["created", "queued", "in_progress"]
    assert EVENT.validate_json(events[0].data).response.status == "queued"


@pytest.mark.parametrize(
    ("reason", "status"),
    [("length", "incomplete"), ("cancelled", "cancelled"), ("expired", "failed"), ("error", "failed")],
)
def test_every_end_has_its_event(reason: FinishReason, status: str) -> None:
    error = ErrorInfo(code="engine_error", message="no") if reason == "error" else None
    events = told([delta(0, "a")], last_word("a", reason, error=error))
    response = last_response(events)
    assert events[-1].type == f"response.{status}"
    assert (response.status, response.output_text) == (status, "a")
    assert response.output[0].status == "incomplete"  # type: ignore[union-attr]  # every item of ours is a message
    assert (response.error is not None) == (status == "failed")
    assert (response.incomplete_details is not None) == (status == "incomplete")


@pytest.mark.parametrize(
    ("code", "theirs"), [("context_length_exceeded", "invalid_prompt"), ("engine_error", "server_error")]
)
def test_a_request_that_never_ran_has_no_message(code: str, theirs: str) -> None:
    events = told([], last_word("", "error", error=ErrorInfo(code=code, message="too long")))
    assert types(events) == ["created", "in_progress", "failed"]
    response = last_response(events)
    assert response.output == []
    assert response.error is not None
    assert (response.error.code, code in response.error.message) == (theirs, True)


def test_a_start_from_scratch_closes_the_message_and_opens_another() -> None:
    again = delta(0, "abc", epoch=1, is_restart=True)
    events = told([delta(0, "x"), again], last_word("abc"))
    items = [json.loads(event.data)["item"] for event in events if event.type == "response.output_item.done"]
    assert [(item["id"], item["status"]) for item in items] == [
        ("msg_q-1", "incomplete"),
        ("msg_q-1_1", "completed"),
    ]
    assert last_response(events).output_text == "abc"


TEXTS = st.lists(st.text(alphabet='ab"\\\n\u2028é😀', max_size=4), max_size=8)


@given(TEXTS, st.booleans(), st.integers(-1, 30))
def test_who_resumes_after_any_number_gets_exactly_the_rest(texts: list[str], is_background: bool, after: int) -> None:
    deltas = [delta(place, text) for place, text in enumerate(texts)]
    completion = last_word("".join(texts))
    asked = IN_BACKGROUND if is_background else ASKED
    whole = told(deltas, completion, asked=asked)
    assert [event.sequence_number for event in whole] == list(range(len(whole)))
    assert told(deltas, completion, asked=asked, after=after) == [
        event for event in whole if event.sequence_number > after
    ]
    parts = [json.loads(event.data)["delta"] for event in whole if event.type == "response.output_text.delta"]
    assert "".join(parts) == "".join(texts)
    assert all("\n" not in event.data for event in whole)
