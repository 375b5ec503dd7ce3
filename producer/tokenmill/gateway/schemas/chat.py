"""The body of POST /v1/chat/completions."""

from typing import Any

from tokenmill.gateway.schemas.base import GenerationBody


class ChatBody(GenerationBody):
    messages: list[dict[str, Any]]
