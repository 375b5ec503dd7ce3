"""The body of POST /v1/chat/completions."""

from typing import Any

from tokenmill.gateway.schemas.base import GenerationBody


class ChatBody(GenerationBody):
    """`logprobs` is a switch here; `top_logprobs` says how many."""

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
