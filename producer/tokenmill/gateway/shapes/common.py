"""What the shapes of several endpoints share. Pure."""

import json
from json.encoder import encode_basestring
from typing import Any, NamedTuple, Protocol

from tokenmill.gateway.sse import event
from tokenmill.wire.messages import Completion, Delta, FinishReason, Usage

# OpenAI knows no word for a job that was cancelled or ran out of time; `x.finish_reason` of an answer says it.
_REASONS: dict[FinishReason, str] = {"cancelled": "stop", "expired": "length", "error": "stop"}


class Opened(NamedTuple):
    """What every part of an answer repeats. `created`: seconds since 1970."""

    id: str
    model: str
    created: int
    num_choices: int


class Shape(Protocol):
    """How one endpoint writes an answer. `whole` is its body in one piece; the others give whole events."""

    def opening(self) -> bytes:
        """Before the first delta, for a client that has seen nothing yet."""
        ...

    def skip(self, delta: Delta) -> None:
        """The client has it already."""
        ...

    def delta(self, delta: Delta) -> bytes:
        """One event, so that its id stands for all of the delta."""
        ...

    def ending(self, completion: Completion, entry_id: str, *, is_told: bool) -> bytes:
        """`is_told`: the client has all of it, and only waits for the end."""
        ...

    def whole(self, completion: Completion) -> dict[str, Any]: ...


def finish_reason(reason: FinishReason) -> str:
    """In OpenAI's words."""
    return _REASONS.get(reason, reason)


def usage(used: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
    }


def extension(completion: Completion) -> dict[str, Any]:
    """What OpenAI's answer has no place for, where there is something to say."""
    if completion.finish_reason in ("cancelled", "expired"):
        return {"x": {"finish_reason": completion.finish_reason}}
    return {}


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def text_json(text: str) -> str:
    return encode_basestring(text)


def event_of(chunk: str, entry_id: str = "") -> bytes:
    return event(chunk.encode(), entry_id)
