"""The entries of a result stream and their stream ids, which are token offsets. Knows no Redis.

`n` counts a request's published tokens over all its choices, `epoch` the times it was started from scratch. The id of
the entry that ends at `n` is `(epoch << 32 | n)-0`, that of the terminal entry `(epoch << 32 | n)-1`: publishing twice
cannot write twice, and a reader resumes by offset whoever the worker is.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, TypeVar, cast, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from tokenmill.wire.errors import DecodeError
from tokenmill.wire.messages.base import Frozen
from tokenmill.wire.messages.result import ErrorInfo, FinishReason, Piece, Timings, TokenLogprob, Usage

T = TypeVar("T")

TerminalType = Literal["done", "error", "cancelled", "expired"]
Fields = Mapping[bytes, bytes]

_OFFSET_BITS = 32
_LOGPROB_FLOOR = -9999.0  # stands for minus infinity, which JSON cannot say; OpenAI's value


def stream_id(epoch: int, num_tokens: int, *, terminal: bool = False) -> str:
    """The id of the entry after which `num_tokens` tokens are told."""
    return f"{epoch << _OFFSET_BITS | num_tokens}-{int(terminal)}"


def split_stream_id(entry_id: str) -> tuple[int, int]:
    """(epoch, number of tokens told) of an entry."""
    told = int(entry_id.partition("-")[0])
    return told >> _OFFSET_BITS, told & ((1 << _OFFSET_BITS) - 1)


class DeltaEntry(NamedTuple):
    """Tokens [offset, offset + len(token_ids)) of a request, all of one choice. At least one: its id is their end.

    (A named tuple: a worker makes thousands a second. What comes from the wire is checked by `decode_entry`.)
    """

    offset: int
    token_ids: tuple[int, ...]
    text: str
    index: int = 0  # type: ignore[assignment]  # of the choice; nobody searches an entry with tuple.index
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] | None = None

    @property
    def end(self) -> int:
        return self.offset + len(self.token_ids)

    def encode(self) -> dict[str, str]:
        fields = self.flat()
        return dict(zip(fields[::2], fields[1::2], strict=True))

    def flat(self) -> list[str]:
        """Names and values in turn, as a command takes them."""
        token_ids = f"[{','.join(map(str, self.token_ids))}]"
        fields = ["type", "delta", "offset", str(self.offset), "text", self.text, "tokens", token_ids]
        if self.index:
            fields += "index", str(self.index)
        if self.finish_reason is not None:
            fields += "finish_reason", self.finish_reason
        if self.logprobs is not None:
            fields += "logprobs", _dump([_logprob_fields(logprob) for logprob in self.logprobs])
            if any(logprob.pieces for logprob in self.logprobs):
                fields += "pieces", _dump([logprob.pieces for logprob in self.logprobs])
        return fields


class ResetEntry(Frozen):
    """Discard what came before: a worker of another model or version starts from scratch."""

    def encode(self) -> dict[str, str]:
        return {"type": "reset"}


class ChoiceText(Frozen):
    """One choice in a terminal entry; its tokens are in the deltas."""

    index: int
    text: str
    finish_reason: FinishReason | None = None


class TerminalEntry(NamedTuple):
    """The one final word. `text` is the whole text of choice 0; with n > 1 `choices` has all of them.

    (A named tuple for DeltaEntry's reason.)
    """

    type: TerminalType
    finish_reason: FinishReason
    text: str = ""
    choices: tuple[ChoiceText, ...] | None = None
    usage: Usage = Usage()
    error: ErrorInfo | None = None
    timings: Timings = Timings()

    def encode(self) -> dict[str, str]:
        fields = {
            "type": self.type,
            "finish_reason": self.finish_reason,
            "text": self.text,
            "usage": _usage_json(self.usage),
            "timings": _timings_json(self.timings),
        }
        if self.choices is not None:
            fields["choices"] = _dump([choice.model_dump(exclude_none=True) for choice in self.choices])
        if self.error is not None:
            fields["error"] = self.error.model_dump_json()
        return fields


Entry = DeltaEntry | ResetEntry | TerminalEntry

_DEFERRED = ConfigDict(defer_build=True)  # built at first use, as the models are
_REASONS = frozenset(get_args(FinishReason))
_TOKENS = TypeAdapter(Annotated[tuple[int, ...], Field(min_length=1)], config=_DEFERRED)
_LOGPROBS = TypeAdapter(tuple[TokenLogprob, ...], config=_DEFERRED)
_PIECES = TypeAdapter(tuple[tuple[Piece, ...], ...], config=_DEFERRED)
_CHOICES = TypeAdapter(tuple[ChoiceText, ...], config=_DEFERRED)


def decode_entry(entry_id: str, fields: Fields) -> Entry:
    """The entry in `fields`, or DecodeError. Fields that a later version may add are left aside."""
    kind = fields.get(b"type", b"")
    try:
        if kind == b"delta":
            return _decode_delta(fields)
        if kind == b"reset":
            return ResetEntry()
        if kind in (b"done", b"error", b"cancelled", b"expired"):
            return _decode_terminal(fields)
    except (ValidationError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise DecodeError(f"result entry {entry_id} is broken: {error}") from None
    raise DecodeError(f"result entry {entry_id} has the unknown type {kind!r}", param="type")


def _decode_delta(fields: Fields) -> DeltaEntry:
    offset, index = int(fields[b"offset"]), int(fields.get(b"index", b"0"))
    if offset < 0 or index < 0:
        raise ValueError("a negative offset or index")
    return DeltaEntry(
        offset,
        _TOKENS.validate_json(fields[b"tokens"]),
        fields[b"text"].decode(),
        index,
        _optional(_reason, fields, b"finish_reason"),
        _spelled(_optional(_LOGPROBS.validate_json, fields, b"logprobs"), fields),
    )


def _spelled(logprobs: tuple[TokenLogprob, ...] | None, fields: Fields) -> tuple[TokenLogprob, ...] | None:
    """With their tokens' pieces, which have a field of their own: a reader of logprobs alone need not know it."""
    if logprobs is None or b"pieces" not in fields:
        return logprobs
    told = zip(logprobs, _PIECES.validate_json(fields[b"pieces"]), strict=True)
    return tuple(TokenLogprob(logprob=one.logprob, top=one.top, pieces=pieces) for one, pieces in told)


def _decode_terminal(fields: Fields) -> TerminalEntry:
    return TerminalEntry(
        cast("TerminalType", fields[b"type"].decode()),
        _reason(fields[b"finish_reason"]),
        fields.get(b"text", b"").decode(),
        _optional(_CHOICES.validate_json, fields, b"choices"),
        _optional(Usage.model_validate_json, fields, b"usage") or Usage(),
        _optional(ErrorInfo.model_validate_json, fields, b"error"),
        _optional(Timings.model_validate_json, fields, b"timings") or Timings(),
    )


def _optional(parse: Callable[[bytes], T], fields: Fields, name: bytes) -> T | None:
    return parse(fields[name]) if name in fields else None


def _reason(value: bytes) -> FinishReason:
    reason = value.decode()
    if reason not in _REASONS:
        raise ValueError(f"the finish_reason {reason!r} is none")
    return cast("FinishReason", reason)


def _usage_json(usage: Usage) -> str:
    """As pydantic writes it, at a quarter of the cost."""
    return (
        f'{{"prompt_tokens":{usage.prompt_tokens},"completion_tokens":{usage.completion_tokens},'
        f'"cached_tokens":{usage.cached_tokens}}}'
    )


def _timings_json(timings: Timings) -> str:
    told = (("queued", timings.queued), ("first_token", timings.first_token), ("total", timings.total))
    return "{" + ",".join([f'"{name}":{value!r}' for name, value in told if value is not None]) + "}"


def _logprob_fields(logprob: TokenLogprob) -> dict[str, object]:
    top = [[token_id, max(value, _LOGPROB_FLOOR)] for token_id, value in logprob.top]
    return {"logprob": max(logprob.logprob, _LOGPROB_FLOOR), "top": top}


def _dump(value: Sequence[object]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
