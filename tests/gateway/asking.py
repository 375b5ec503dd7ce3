"""Bodies to send and answers to read: what tests of several endpoints share. Knows no server."""

import json
from typing import Any, NamedTuple

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
PROMPT = "Why is the sky blue?"


def chat(**fields: object) -> dict[str, object]:
    return {"model": "echo", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **fields}


def text(**fields: object) -> dict[str, object]:
    return {"model": "echo", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **fields}


class Event(NamedTuple):
    """`id` is empty where there is none; `data` None for [DONE]."""

    id: str
    data: dict[str, Any] | None


def events_of(body: str) -> list[Event]:
    """Comments are left out."""
    events = []
    for block in body.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line and not line.startswith(":"))
        if fields:
            data = fields["data"]
            events.append(Event(fields.get("id", ""), None if data == "[DONE]" else json.loads(data)))
    return events


def chunks_of(body: str) -> list[dict[str, Any]]:
    """The data of every event but the last, which is [DONE]."""
    *events, last = events_of(body)
    assert last.data is None
    return [event.data for event in events if event.data is not None]


def content_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice, of either kind of chunk."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices)
