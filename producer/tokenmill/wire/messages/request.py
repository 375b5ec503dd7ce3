"""A request: what a producer asks for, its validation and its canonical form on the wire. Knows no Redis, no model.

Two ways in, one set of rules: `Request.build` takes the client's keyword arguments, `Request.decode` the JSON body of
any producer. Both refuse what they do not know by name, so that a misspelt or unsupported field never changes an
answer silently.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tokenmill.wire.errors import DecodeError, InvalidRequestError
from tokenmill.wire.keys import MAX_BODY_BYTES, RESULT_TTL_S
from tokenmill.wire.messages.base import Frozen, validate

PROTOCOL_VERSION = 1
MAX_KIND_LENGTH = 4_096  # characters: a kind with longer stop strings is not remembered
MAX_KINDS = 1_000  # of requests that a decoder remembers: all but those of a run with a seed for each row

Priority = Literal["high", "normal", "bulk"]

REQUEST_ID = re.compile(r"[A-Za-z0-9._:~-]{1,200}")
_YEAR_S = 366 * 86_400
INT32_MAX = 2**31 - 1

# OpenAI's fields that change nothing here: who asks, bookkeeping, and `stream` (every result can be streamed).
IGNORED_FIELDS = frozenset(
    (
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream",
        "stream_options",
        "user",
    )
)

# OpenAI's fields that would change the answer and that we do not have, with the values under which they change nothing.
UNSUPPORTED_FIELDS: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "prediction": (),
    "reasoning": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}

Role = Literal["system", "developer", "user", "assistant"]
NonEmpty = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]


def check_request_id(request_id: object) -> str:
    """The id itself, or InvalidRequestError that says what an id looks like."""
    if isinstance(request_id, str) and REQUEST_ID.fullmatch(request_id):
        return request_id
    raise InvalidRequestError("id must be 1 to 200 characters out of A-Z a-z 0-9 . _ : ~ -", param="id")


class SamplingParams(Frozen):
    """How one request draws its tokens; None leaves the choice to the model's own defaults.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 keep every token; `logprobs` k asks for the chosen token's and
    the k likeliest tokens' log-probabilities. A bad value raises InvalidRequestError when the request is built.
    """

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=INT32_MAX)
    min_p: float | None = Field(default=None, ge=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1, le=INT32_MAX)
    min_tokens: int | None = Field(default=None, ge=0, le=INT32_MAX)
    stop: tuple[NonEmpty, ...] | None = None
    stop_token_ids: tuple[TokenId, ...] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)
    ignore_eos: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    n: int | None = Field(default=None, ge=1, le=128)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, stop: object) -> object:
        return (stop,) if isinstance(stop, str) else _as_tuple(stop)

    @field_validator("stop_token_ids", mode="before")
    @classmethod
    def _many(cls, token_ids: object) -> object:
        return _as_tuple(token_ids)

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _integer_keys(cls, bias: object) -> object:
        """JSON knows no integer keys."""
        if not isinstance(bias, dict):
            return bias
        return {int(key) if isinstance(key, str) and _is_digits(key) else key: value for key, value in bias.items()}

    @model_validator(mode="after")
    def _min_below_max(self) -> Self:
        if self.min_tokens is not None and self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError("min_tokens must not exceed max_tokens", param="min_tokens")
        return self

    def given(self) -> dict[str, object]:
        """The fields that the producer set, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Message(Frozen):
    """One turn of a chat. Content given as text parts is joined."""

    role: Role
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _join_parts(cls, content: object) -> object:
        if not isinstance(content, list | tuple):
            return content
        return "".join(_text_of(part) for part in content)


class Request(Frozen):
    """One request. Exactly one of `prompt` (raw text or token ids) and `messages` (the model's chat template)."""

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Message, ...] | None = None
    model: str | None = Field(default=None, min_length=1, max_length=500)
    sampling: SamplingParams = SamplingParams()
    priority: Priority = "normal"
    deadline_s: float | None = Field(default=None, gt=0, le=_YEAR_S)
    group: str | None = None
    stream: Literal["delta", "final"] = "delta"
    result_ttl_s: int = Field(default=RESULT_TTL_S, ge=1, le=_YEAR_S)
    traceparent: str | None = Field(default=None, pattern=r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")
    on_detach: Literal["continue", "cancel"] = "continue"

    @field_validator("prompt", mode="before")
    @classmethod
    def _text_or_ids(cls, prompt: object) -> object:
        if isinstance(prompt, str):
            if not prompt:
                raise ValueError("must not be empty")
            return prompt
        if not isinstance(prompt, list | tuple) or not all(type(token) is int for token in prompt):
            raise ValueError("must be one string or one list of token ids")
        if not prompt:
            raise ValueError("must not be empty")
        if not all(0 <= token <= INT32_MAX for token in prompt):
            raise ValueError("token ids must be 0 or more")
        return tuple(prompt)

    @field_validator("messages", mode="before")
    @classmethod
    def _turns(cls, messages: object) -> object:
        if not isinstance(messages, list | tuple):
            raise ValueError("must be a list of messages")
        if not messages:
            raise ValueError("must not be empty")
        return tuple(_without_nulls(turn) if isinstance(turn, dict) else turn for turn in messages)

    @field_validator("group")
    @classmethod
    def _group_like_id(cls, group: str | None) -> str | None:
        if group is not None and not REQUEST_ID.fullmatch(group):
            raise ValueError("must look like an id: 1 to 200 characters out of A-Z a-z 0-9 . _ : ~ -")
        return group

    @classmethod
    def build(cls, **fields: object) -> "Request":
        """From keyword arguments: request fields, options and sampling fields side by side.

        `sampling` may give a SamplingParams; sampling fields beside it win. InvalidRequestError names the field.
        """
        given = _without_nulls(fields)
        sampling = given.pop("sampling", None)
        if sampling is not None and not isinstance(sampling, SamplingParams):
            raise InvalidRequestError("sampling must be a SamplingParams", param="sampling")
        base = sampling.given() if sampling is not None else {}
        options = {name: given.pop(name) for name in _OPTIONS if name in given}
        return cls._assemble(base | given, options, prefix="")

    @classmethod
    def decode(cls, body: bytes) -> "Request":
        """From a JSON body. DecodeError: no JSON object of ours; InvalidRequestError: a field, named, is wrong."""
        return cls.from_object(decode_object(body))

    @classmethod
    def from_object(cls, fields: Mapping[str, object]) -> "Request":
        """From a decoded JSON body. An `id` in it belongs to the entry, not to the request, and is left aside."""
        given = _without_nulls(fields)
        given.pop("id", None)
        options = given.pop("x", {})
        if not isinstance(options, dict):
            raise InvalidRequestError("x must be an object", param="x")
        return cls._assemble(given, _without_nulls(options), prefix="x.")

    @classmethod
    def _assemble(cls, fields: dict[str, object], options: dict[str, object], *, prefix: str) -> "Request":
        """`fields` as in a body, `options` as in its `x`; every None is gone already."""
        fields = {name: value for name, value in fields.items() if name not in IGNORED_FIELDS}
        _check_names(fields, options, prefix)
        _refuse_unsupported(fields)
        fields = _normalise(fields)
        subject = {name: fields.pop(name) for name in _SUBJECT if name in fields}
        if ("prompt" in subject) == ("messages" in subject):
            both = "not both" if "prompt" in subject else "none was given"
            raise InvalidRequestError(f"a request has either prompt or messages: {both}", param="prompt")
        sampling = validate(SamplingParams, fields)
        whole: dict[str, object] = {"sampling": sampling} | subject | options
        request = validate(cls, whole, prefixes=dict.fromkeys(options, prefix))
        _check_size(len(request._encoded_or_refused()))
        return request

    def _with_prompt(self, prompt: str) -> "Request":
        """The same but for a prompt that needs no check."""
        other = self.model_copy(update={"prompt": prompt})
        for cached in ("_encoded", "digest"):
            other.__dict__.pop(cached, None)
        return other

    def encode(self) -> bytes:
        """Canonical JSON: sorted keys, defaults left out; equal requests have equal bytes."""
        return self._encoded

    @cached_property
    def _encoded(self) -> bytes:
        return _dump(self._fields(self._options()))

    def _encoded_or_refused(self) -> bytes:
        """Half a surrogate pair passes JSON and Python strings, but no bytes on a wire."""
        try:
            return self._encoded
        except UnicodeEncodeError:
            param = next((name for name in ("prompt", "messages", "model") if _is_broken(getattr(self, name))), "stop")
            raise InvalidRequestError(f"{param}: holds half a surrogate pair, no valid text", param=param) from None

    @cached_property
    def digest(self) -> str:
        """sha256, hex, of what is asked. A retry under a new trace asks the same, so `traceparent` does not count."""
        asked = self._encoded
        if self.traceparent is not None:
            options = self._options()
            del options["traceparent"]
            asked = _dump(self._fields(options))
        return hashlib.sha256(asked).hexdigest()

    def _options(self) -> dict[str, object]:
        return {name: value for name, default in _OPTIONS.items() if (value := getattr(self, name)) != default}

    def _fields(self, options: dict[str, object]) -> dict[str, object]:
        fields: dict[str, object] = self.sampling.given()
        if self.prompt is not None:
            fields["prompt"] = self.prompt
        if self.messages is not None:
            fields["messages"] = [{"role": turn.role, "content": turn.content} for turn in self.messages]
        if self.model is not None:
            fields["model"] = self.model
        if options:
            fields["x"] = options
        return fields


class RequestDecoder:
    """Decodes bodies of a stream of requests; of one that differs from an earlier one in its prompt alone, no more is
    looked at than the prompt. Not for several threads.
    """

    def __init__(self) -> None:
        self._like: dict[str, Request] = {}

    def decode(self, body: bytes) -> Request:
        """As `Request.decode`, with the same errors. Equal `sampling` is the same object."""
        like, prompt = self.split(body)
        return like if prompt is None else like._with_prompt(prompt)

    def split(self, body: bytes) -> tuple[Request, str | None]:
        """The same without a Request being made of every body: one that is like it, and the prompt in place of that
        one's; None: it is the request itself.
        """
        fields = decode_object(body)
        prompt = fields.get("prompt")
        if type(prompt) is not str or not prompt or b"\\u" in body:  # an escape may hide half a surrogate pair
            return Request.from_object(fields), None
        fields["prompt"] = "-"
        kind = repr(fields)
        like = self._like.get(kind)
        if like is None:
            like = self._remember(kind, Request.from_object(fields))
        return like, prompt

    def _remember(self, kind: str, like: Request) -> Request:
        if len(self._like) >= MAX_KINDS:
            self._like.clear()
        if len(kind) <= MAX_KIND_LENGTH:
            self._like[kind] = like
        return like


_SUBJECT = frozenset(("prompt", "messages", "model"))
_OPTIONS: dict[str, object] = {
    name: field.default for name, field in Request.model_fields.items() if name not in _SUBJECT | {"sampling"}
}
_ALIASES = frozenset(("max_completion_tokens", "top_logprobs"))
_KNOWN_FIELDS = _SUBJECT | SamplingParams.model_fields.keys() | UNSUPPORTED_FIELDS.keys() | _ALIASES


def decode_object(body: bytes) -> dict[str, object]:
    """The JSON object in `body`, or DecodeError. NaN and infinities pass: the field they stand in is named later."""
    _check_size(len(body))
    try:
        decoded = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DecodeError(f"body is not UTF-8: {error.reason} at byte {error.start}", param="body") from None
    except (ValueError, RecursionError) as error:
        raise DecodeError(f"body is not JSON: {error}", param="body") from None
    if not isinstance(decoded, dict):
        raise DecodeError(f"body must be a JSON object, got {type(decoded).__name__}", param="body")
    return decoded


def _dump(fields: Mapping[str, object]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BODY_BYTES:
        raise InvalidRequestError(
            f"the request has {num_bytes} bytes; at most {MAX_BODY_BYTES} are accepted", param="body", code="too_large"
        )


def _is_broken(value: object) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in str(value))


def _check_names(fields: Mapping[str, object], options: Mapping[str, object], prefix: str) -> None:
    unknown = fields.keys() - _KNOWN_FIELDS
    for name in [*unknown, *(prefix + option for option in options.keys() - _OPTIONS.keys())]:
        printable = name.encode("utf-8", "backslashreplace").decode()
        raise InvalidRequestError(f"unknown field {printable!r}", param=printable, code="unknown_field")


def _refuse_unsupported(fields: Mapping[str, object]) -> None:
    for name in fields.keys() & UNSUPPORTED_FIELDS.keys():
        if not any(type(fields[name]) is type(noop) and fields[name] == noop for noop in UNSUPPORTED_FIELDS[name]):
            raise InvalidRequestError(f"{name} is not supported", param=name, code="unsupported_field")


def _normalise(fields: dict[str, object]) -> dict[str, object]:
    """One spelling for each thing: aliases resolved, fields that ask for nothing dropped."""
    fields = {name: value for name, value in fields.items() if name not in UNSUPPORTED_FIELDS}
    if "max_completion_tokens" in fields:
        alias = fields.pop("max_completion_tokens")
        if fields.setdefault("max_tokens", alias) != alias:
            raise InvalidRequestError("max_completion_tokens and max_tokens disagree", param="max_completion_tokens")
    return _one_logprobs(fields)


def _one_logprobs(fields: dict[str, object]) -> dict[str, object]:
    """`logprobs` is a number (completions form), or a bool with `top_logprobs` beside it (chat form)."""
    top = fields.pop("top_logprobs", None)
    asked = fields.get("logprobs")
    if not isinstance(asked, bool):
        if top is not None:
            raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return fields
    del fields["logprobs"]
    if asked:
        return fields | {"logprobs": _checked_top(top)}
    if top:
        raise InvalidRequestError("top_logprobs needs logprobs: true", param="top_logprobs")
    return fields


def _checked_top(top: object) -> int:
    if top is None:
        return 0
    if type(top) is not int or not 0 <= top <= 20:
        raise InvalidRequestError("top_logprobs must be an integer from 0 to 20", param="top_logprobs")
    return top


def _text_of(part: object) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise ValueError(f"only text parts are supported, got {kind!r}")
    extra = part.keys() - {"type", "text"}
    if extra:
        raise ValueError(f"unknown field {min(map(str, extra))!r} in a text part")
    if not isinstance(part.get("text"), str):
        raise ValueError("the text of a text part must be a string")
    return str(part["text"])


def _without_nulls(fields: Mapping[str, object]) -> dict[str, object]:
    """OpenAI's clients send null for what they leave open."""
    return {name: value for name, value in fields.items() if value is not None}


def _as_tuple(values: object) -> object:
    return tuple(values) if isinstance(values, Iterable) and isinstance(values, list | tuple) else values


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12
