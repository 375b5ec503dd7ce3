"""What POST /v1/responses accepts, what it asks of the queue, and what it refuses by name."""

from typing import Any

import pytest
from pydantic import ValidationError
from tokenmill.gateway.schemas.responses import UNSTORED_TTL_S, ResponseBody
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.messages import Request


def body(**fields: Any) -> ResponseBody:
    return ResponseBody.model_validate({"input": "hello", **fields})


def asked_of_the_queue(**fields: Any) -> Request:
    parsed = body(**fields)
    parsed.check()
    return Request.build(**parsed.request_fields([]))


def test_a_text_is_a_turn_of_the_user_behind_the_instructions() -> None:
    request = asked_of_the_queue(instructions="Be brief.", max_output_tokens=5, temperature=0, top_p=0.5)
    assert request.messages is not None
    assert [(turn.role, turn.content) for turn in request.messages] == [("system", "Be brief."), ("user", "hello")]
    assert (request.sampling.max_tokens, request.sampling.temperature, request.sampling.top_p) == (5, 0, 0.5)
    assert request.on_detach == "cancel"


def test_turns_of_any_role_and_former_answers_are_joined_text() -> None:
    answer = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "Hi", "annotations": []}, {"type": "output_text", "text": "!"}],
    }
    turns = body(input=[{"role": "user", "content": "hello"}, answer, {"role": "developer", "content": "x"}]).turns()
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        ("user", "hello"),
        ("assistant", "Hi!"),
        ("developer", "x"),
    ]


def test_a_background_response_outlives_its_client_and_an_unstored_one_soon_goes() -> None:
    assert asked_of_the_queue(background=True).on_detach == "continue"
    assert asked_of_the_queue(store=False).result_ttl_s == UNSTORED_TTL_S
    assert asked_of_the_queue(x={"on_detach": "continue", "priority": "high"}).on_detach == "continue"


def test_nulls_and_fields_that_change_nothing_are_left_aside() -> None:
    request = asked_of_the_queue(tools=[], tool_choice="auto", metadata={"a": "b"}, reasoning=None, truncation="auto")
    assert request == asked_of_the_queue()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}, "text"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"background": True, "store": False}, "store"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["hello"]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": [{"type": "function_call_output", "call_id": "1"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"stop": [""]}, "stop[0]"),
    ],
)
def test_what_would_be_dropped_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        asked_of_the_queue(**fields)
    assert refused.value.param == param


@pytest.mark.parametrize("fields", [{"input": 3}, {"stream": "yes"}, {"max_output_tokens": 0}, {"x": {"y": 1}}])
def test_wrong_types_are_errors(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        body(**fields)
