"""What the shapes of several endpoints share. Pure."""

from json.encoder import encode_basestring
from typing import Any

from tokenmill.wire.messages import Completion, FinishReason, Usage

# OpenAI knows no word for a job that was cancelled or ran out of time; `x.finish_reason` of an answer says it.
_REASONS: dict[FinishReason, str] = {"cancelled": "stop", "expired": "length", "error": "stop"}


def finish_reason(reason: FinishReason | None) -> str | None:
    """In OpenAI's words."""
    return None if reason is None else _REASONS.get(reason, reason)


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


def text_json(text: str) -> str:
    return encode_basestring(text)
