"""The short way for plain requests: the body of the commonest fields, written without a model being built.

Knows no error. What is unusual in any way it leaves to `Request`, which takes it or says what is wrong with it; what
it does take gets the very bytes of `Request.build(...).encode()`.
"""

from collections.abc import Callable, Mapping
from json.encoder import encode_basestring
from typing import Any, NamedTuple, get_args

from tokenmill.wire.keys import MAX_BODY_BYTES
from tokenmill.wire.messages.request import INT32_MAX, REQUEST_ID, Priority, Role

_ROLES = frozenset(get_args(Role))
_PRIORITIES = frozenset(get_args(Priority))


class PlainRequest(NamedTuple):
    """The canonical body, and what of it the queue wants to know."""

    body: bytes
    priority: Priority
    group: str | None


Writer = Callable[[Any], str | None]  # a value's JSON; None: not for us


def _text(value: Any) -> str | None:
    return encode_basestring(value) if type(value) is str and value else None


def _messages(value: Any) -> str | None:
    turns = [_turn(turn) for turn in value] if type(value) is list else []
    written = [turn for turn in turns if turn is not None]
    return f"[{','.join(written)}]" if turns and len(written) == len(turns) else None


def _turn(turn: Any) -> str | None:
    if type(turn) is not dict or turn.keys() != {"role", "content"}:
        return None
    role, content = turn["role"], turn["content"]
    if type(content) is not str or type(role) is not str or role not in _ROLES:
        return None
    return f'{{"content":{encode_basestring(content)},"role":"{role}"}}'


def _stop(value: Any) -> str | None:
    text = _text(value)
    return None if text is None else f"[{text}]"


def _model(value: Any) -> str | None:
    return encode_basestring(value) if type(value) is str and 0 < len(value) <= 500 else None


def _flag(value: Any) -> str | None:
    return ("true" if value else "false") if type(value) is bool else None


def _integer(low: int, high: int) -> Writer:
    return lambda value: int.__repr__(value) if type(value) is int and low <= value <= high else None


def _real(low: float, high: float) -> Writer:
    """Closed at both ends; a whole number is written as the float that it means."""
    return lambda value: repr(float(value)) if type(value) in (int, float) and low <= value <= high else None


def _group(value: Any) -> str | None:
    return f'"{value}"' if type(value) is str and REQUEST_ID.fullmatch(value) else None


def _priority(value: Any) -> str | None:
    return f'"{value}"' if type(value) is str and value in _PRIORITIES else None


def _stream(value: Any) -> str | None:
    return f'"{value}"' if type(value) is str and value in ("delta", "final") else None


_FIELDS: dict[str, Writer] = {
    "ignore_eos": _flag,
    "max_tokens": _integer(1, INT32_MAX),
    "messages": _messages,
    "model": _model,
    "prompt": _text,
    "seed": _integer(-(2**63), 2**64 - 1),
    "stop": _stop,
    "temperature": _real(0, 100),
}
_OPTIONS: dict[str, Writer] = {"group": _group, "priority": _priority, "stream": _stream}
_WRITERS = _FIELDS | _OPTIONS
_LEFT_OUT = frozenset(('"priority":"normal"', '"stream":"delta"'))  # the defaults


def encode_plain(fields: Mapping[str, Any]) -> PlainRequest | None:
    """`fields` as `Request.build` takes them; None: build a Request."""
    parts: list[str] = []
    options: list[str] = []
    for name, value in fields.items():
        if value is None:
            continue
        writer = _WRITERS.get(name)
        text = writer(value) if writer is not None else None
        if text is None:
            return None
        (options if name in _OPTIONS else parts).append(f'"{name}":{text}')
    if (fields.get("prompt") is None) == (fields.get("messages") is None):
        return None
    body = _assemble(parts, options)
    return None if body is None else PlainRequest(body, fields.get("priority") or "normal", fields.get("group"))


def _assemble(parts: list[str], options: list[str]) -> bytes | None:
    """Sorted by name: a quote sorts before every character of a name, so a name before one that it begins."""
    asked = sorted(option for option in options if option not in _LEFT_OUT)
    if asked:
        parts.append(f'"x":{{{",".join(asked)}}}')
    parts.sort()
    try:
        body = f"{{{','.join(parts)}}}".encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    return body if len(body) <= MAX_BODY_BYTES else None
