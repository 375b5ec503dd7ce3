"""Lines of OpenAI Batch files: what of them can be asked here, and what is refused with its reason."""

import pytest
from tokenmill.bulk.batch_lines import is_batch_line, render_batch_line
from tokenmill.bulk.prompts import PromptError
from tokenmill.bulk.rows import JSON, Fields
from tokenmill.wire.messages import Request

TURNS: JSON = [{"role": "user", "content": "hi"}]


def line(url: str = "/v1/chat/completions", **body: JSON) -> Fields:
    return {"custom_id": "a", "method": "POST", "url": url, "body": body}


def test_a_chat_body_becomes_a_request_with_its_own_parameters() -> None:
    body = line(model="m", messages=TURNS, max_completion_tokens=5, temperature=0, seed=None, stream=True, user="me")
    asked = render_batch_line(body)
    assert asked == {"model": "m", "messages": TURNS, "max_tokens": 5, "temperature": 0}
    assert Request.build(**asked).sampling.max_tokens == 5


@pytest.mark.parametrize("prompt", ["hi", ["hi"], [1, 2], [[1, 2]]])
def test_a_completions_body_takes_text_or_tokens(prompt: JSON) -> None:
    assert Request.build(**render_batch_line(line("/v1/completions", prompt=prompt))).prompt in ("hi", (1, 2))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({**line(messages=TURNS), "custom_id": ""}, "custom_id must be a string"),
        ({**line(messages=TURNS), "custom_id": 7}, "custom_id must be a string"),
        ({**line(messages=TURNS), "method": "GET"}, "method must be POST, got 'GET'"),
        (line("/v1/embeddings", input="a"), "'/v1/embeddings' is not supported"),
        ({**line(), "body": "text"}, "body must be an object"),
        ({"custom_id": "a", "method": "POST", "url": "/v1/completions"}, "body must be an object"),
        (line(prompt="hi"), "no 'messages'"),
        (line("/v1/completions", messages=TURNS), "no 'prompt'"),
        (line("/v1/completions", prompt=["a", "b"]), "a list of prompts is not supported"),
        (line(messages=TURNS, priority="high"), "unknown field 'priority'"),
        (line(messages=TURNS, x={"group": "g"}), "unknown field 'x'"),
    ],
)
def test_what_cannot_be_asked_is_refused(fields: Fields, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        render_batch_line(fields)


def test_a_batch_line_is_known_by_its_four_names() -> None:
    assert is_batch_line(line(messages=TURNS))
    assert not is_batch_line({**line(), "body": "text"})
    assert not is_batch_line({"custom_id": "a", "prompt": "hi"})
