"""The body of POST /v1/responses: what it may hold, and the request that it asks of the queue. No IO, no framework.

Fields that would change the answer and that we do not have are refused by name, never dropped; fields of clients that
change nothing are accepted and left aside.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokenmill.gateway.responses.view import Asked
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.keys import RESULT_TTL_S

UNSTORED_TTL_S = 600  # `store: false`: long enough to reconnect, no longer

Turn = dict[str, str]  # role, content

_TEXT_PARTS = frozenset(("input_text", "output_text", "text"))

# Fields that we do not have, with the values under which they change nothing.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "conversation": (),
    "context_management": ([],),
    "image": (),
    "include": ([], ["reasoning.encrypted_content"]),
    "input_transformations": ([],),
    "max_tool_calls": (),
    "moderation": (),
    "prompt": (),
    "reasoning": ({}, {"effort": None}, {"effort": None, "summary": None}),
    "text": ({}, {"format": {"type": "text"}}, {"format": {"type": "text"}, "verbosity": "medium"}),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
}
# Sampling parameters of our own beside OpenAI's, by the names that the queue gives them.
_OWN_SAMPLING = (
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "top_k",
)


class Options(BaseModel):
    """Our own options, in `x`; what they mean is in the protocol."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    priority: Literal["high", "normal", "bulk"] | None = None
    deadline_s: float | None = None
    result_ttl_s: int | None = None
    traceparent: str | None = None
    on_detach: Literal["continue", "cancel"] | None = None


class ResponseBody(BaseModel):
    """As a client posts it. Strict, so that a wrong type is an error and not a guess."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    input: str | list[Any]
    model: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stream: bool | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    x: Options = Options()

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: object) -> object:
        """Clients send null for what they leave open."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def is_background(self) -> bool:
        return bool(self.background)

    @property
    def is_streamed(self) -> bool:
        return bool(self.stream)

    def check(self) -> None:
        """InvalidRequestError: a field, named, asks for what there is not."""
        for name, harmless in _UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value not in harmless:
                raise InvalidRequestError(f"{name} is not supported here", param=name, code="unsupported_parameter")
        if self.is_background and self.store is False:
            raise InvalidRequestError(
                "background needs store: nobody could ask for the answer later", param="store", code="invalid_value"
            )

    def turns(self) -> list[Turn]:
        """The input as messages, the instructions not among them."""
        if isinstance(self.input, str):
            if not self.input:
                raise InvalidRequestError("input must not be empty", param="input")
            return [{"role": "user", "content": self.input}]
        if not self.input:
            raise InvalidRequestError("input must not be empty", param="input")
        return [_turn(item, f"input[{place}]") for place, item in enumerate(self.input)]

    def asked(self, model: str, created_at: int) -> Asked:
        """What the response repeats. `model`: that answers; `created_at`: Unix seconds."""
        return Asked(
            created_at=created_at,
            model=model,
            background=self.is_background,
            instructions=self.instructions,
            max_output_tokens=self.max_output_tokens,
            metadata=self.metadata or {},
            previous_response_id=self.previous_response_id,
            store=self.store is not False,
            temperature=self.temperature,
            top_p=self.top_p,
            user=self.user,
        )

    def request_fields(self, history: Sequence[Turn]) -> dict[str, object]:
        """What the client's `submit` takes. `history`: turns before the input."""
        system = [{"role": "system", "content": self.instructions}] if self.instructions is not None else []
        extra = self.model_extra or {}
        fields: dict[str, object] = {
            "messages": [*system, *history, *self.turns()],
            "model": self.model,
            "max_tokens": self.max_output_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            **{name: extra[name] for name in _OWN_SAMPLING if name in extra},
            **self.x.model_dump(exclude_none=True),
            "on_detach": "continue" if self.is_background else self.x.on_detach or "cancel",
            "result_ttl_s": self.result_ttl_s,
        }
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def result_ttl_s(self) -> int:
        return self.x.result_ttl_s or (UNSTORED_TTL_S if self.store is False else RESULT_TTL_S)


def _turn(item: object, path: str) -> Turn:
    if not isinstance(item, Mapping):
        raise InvalidRequestError(f"{path} must be an object", param=path)
    kind = item.get("type") or "message"
    if kind != "message":
        raise InvalidRequestError(
            f"{path}.type: only messages are supported here, got {_shown(kind)}",
            param=f"{path}.type",
            code="unsupported_parameter",
        )
    role = item.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise InvalidRequestError(f"{path}.role must be system, developer, user or assistant", param=f"{path}.role")
    return {"role": role, "content": _content(item.get("content"), f"{path}.content")}


def _content(content: object, path: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise InvalidRequestError(f"{path} must be text or a list of text parts", param=path)
    return "".join(_text_of(part, f"{path}[{place}]") for place, part in enumerate(content))


def _text_of(part: object, path: str) -> str:
    if not isinstance(part, Mapping) or part.get("type") not in _TEXT_PARTS:
        kind = _shown(part.get("type")) if isinstance(part, Mapping) else "no object"
        raise InvalidRequestError(
            f"{path}: only text is supported here, got {kind}", param=path, code="unsupported_parameter"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{path}.text must be text", param=f"{path}.text")
    return text


def _shown(kind: object) -> str:
    return repr(kind[:50]) if isinstance(kind, str) else "no type"
