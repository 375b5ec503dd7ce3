"""What a front door keeps beside a request and asks of it, so that any other one can answer for it. No connection."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenmill.wire.keys import Keys
from tokenmill.wire.store.calls import Call, Procedure, Script, Steps, checked

_ASKED = ("asked", "kept")


class Noted(NamedTuple):
    """A request and its note. `asked`: as the front door wrote it, None: there is no note (any more).

    `is_kept`: nobody may cancel the request because a client went away. `state` None: there is no job. `last`: the
    last entry of its result, if it has one.
    """

    asked: bytes | None
    is_kept: bool
    state: str | None
    body: bytes
    last: tuple[str, Mapping[bytes, bytes]] | None


def leave_note(keys: Keys, request_id: str, fields: Mapping[str, str], *, ttl_s: int) -> Call[dict[str, bytes]]:
    """Write fields of a request's note, out of `asked` and `kept`, and read them: what was there before stays.

    `ttl_s` from now.
    """
    args: tuple[str | int, ...] = (ttl_s, len(fields), *(word for field in fields.items() for word in field))
    return Call(
        Script.load("note"), (keys.note(request_id),), args, lambda reply: dict(zip(fields, reply, strict=True))
    )


def recall(keys: Keys, request_id: str) -> Procedure[Noted]:
    """One look at a request and its note."""
    return Procedure(lambda: _recall(keys, request_id))


def forget(keys: Keys, request_id: str) -> Procedure[None]:
    """Delete a request that is final, with its result and its note."""
    return Procedure(lambda: _forget(keys, request_id))


def _recall(keys: Keys, request_id: str) -> Steps[Noted]:
    replies = yield [
        ("HMGET", keys.note(request_id), *_ASKED),
        ("HMGET", keys.job(request_id), "state", "body"),
        ("XREVRANGE", keys.result(request_id), "+", "-", "COUNT", 1),
    ]
    (asked, kept), (state, body), entries = map(checked, replies)
    return Noted(asked, kept is not None, None if state is None else state.decode(), body or b"", _last(entries))


def _last(entries: list[tuple[bytes, Any]]) -> tuple[str, Mapping[bytes, bytes]] | None:
    return (entries[0][0].decode(), entries[0][1]) if entries else None


def _forget(keys: Keys, request_id: str) -> Steps[None]:
    (reply,) = yield [("DEL", keys.job(request_id), keys.result(request_id), keys.note(request_id))]
    checked(reply)
