"""The response object as OpenAI's clients read it, made of what was asked and of what the queue knows. No IO."""

from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from tokenmill.wire.messages import Completion, ErrorInfo, FinishReason, Usage

PREFIX = "resp_"

# Codes of errors that the caller can mend; all others are ours.
CALLERS_FAULT = frozenset(
    ("context_length_exceeded", "invalid_request", "model_not_found", "no_chat_template", "unknown_field")
)

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
_STATUS: dict[FinishReason, Status] = {
    "stop": "completed",
    "length": "incomplete",
    "cancelled": "cancelled",
    "expired": "failed",
    "error": "failed",
}

MessageStatus = Literal["in_progress", "completed", "incomplete"]
Fields = dict[str, object]


class Asked(BaseModel):
    """What a response repeats of the body that it answers, kept beside the job: the job's own body has the rest."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    created_at: int  # Unix seconds
    model: str
    background: bool = False
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] = {}
    previous_response_id: str | None = None
    store: bool = True
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None


class Outcome(NamedTuple):
    """How a response stands. `completed_at`: Unix seconds."""

    status: Status
    output: list[Fields]
    usage: Usage | None = None
    error: ErrorInfo | None = None
    reason: str | None = None  # why it is incomplete
    completed_at: int | None = None


def response_object(request_id: str, asked: Asked, outcome: Outcome) -> Fields:
    return {
        "id": PREFIX + request_id,
        "object": "response",
        "created_at": asked.created_at,
        "status": outcome.status,
        "background": asked.background,
        "completed_at": outcome.completed_at,
        "error": _error_fields(outcome.error),
        "incomplete_details": None if outcome.reason is None else {"reason": outcome.reason},
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata,
        "model": asked.model,
        "output": outcome.output,
        "parallel_tool_calls": False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": asked.store,
        "temperature": asked.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": asked.top_p,
        "truncation": "disabled",
        "usage": None if outcome.usage is None else usage_fields(outcome.usage),
        "user": asked.user,
    }


def item_id(request_id: str, epoch: int = 0) -> str:
    """Of the one message that a response holds; another after a start from scratch."""
    return f"msg_{request_id}" + (f"_{epoch}" if epoch else "")


def message_item(item: str, text: str | None, status: MessageStatus) -> Fields:
    """`text` None: its content has not begun."""
    content = [] if text is None else [text_part(text)]
    return {"id": item, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> Fields:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def usage_fields(usage: Usage) -> Fields:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def final_outcome(completion: Completion, item: str, created_at: int) -> Outcome:
    """What a request's last word makes of its response; `item`: the id of its message."""
    status = final_status(completion)
    text = completion.text
    output = [message_item(item, text, message_status(status))] if has_message(completion) else []
    reason = "max_output_tokens" if status == "incomplete" else None
    ended_at = created_at + round((completion.timings.total or 0.0) / 1000) if status == "completed" else None
    return Outcome(status, output, completion.usage, _final_error(completion), reason, ended_at)


def final_status(completion: Completion) -> Status:
    return _STATUS[completion.finish_reason]


def has_message(completion: Completion) -> bool:
    """A request that never ran has none."""
    is_done = completion.finish_reason in ("stop", "length")
    return is_done or bool(completion.text) or completion.usage.completion_tokens > 0


def message_status(status: Status) -> MessageStatus:
    """Of the message in a response that is over."""
    return "completed" if status == "completed" else "incomplete"


def _final_error(completion: Completion) -> ErrorInfo | None:
    if completion.finish_reason == "expired":
        return ErrorInfo(code="deadline_exceeded", message="the request's deadline passed before it was done")
    return completion.error


def _error_fields(error: ErrorInfo | None) -> Fields | None:
    """OpenAI knows few codes; ours stands in the message."""
    if error is None:
        return None
    code = "invalid_prompt" if error.code in CALLERS_FAULT else "server_error"
    return {"code": code, "message": f"{error.message} ({error.code})"}
