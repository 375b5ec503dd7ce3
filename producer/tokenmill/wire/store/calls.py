"""Calls and procedures: what to send and how to read the answer, without sending it. Knows no connection.

An operation is a generator of command batches that is sent their replies (an error reply is a value too) and returns
its result. `Store` and `AsyncStore` differ only in how they carry a batch to the server.
"""

import hashlib
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from redis.exceptions import MovedError, NoScriptError, OutOfMemoryError, RedisError, ResponseError

from tokenmill.wire.errors import DecodeError, FencedError, QueueBusyError, TokenmillError, UnavailableError
from tokenmill.wire.store.faults import is_passing

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Argument = str | bytes | int | float
Command = tuple[Argument, ...]
Steps = Generator[Sequence[Command], list[Any], T]


class Operation(Protocol[T_co]):
    """What a store can run."""

    def steps(self) -> Steps[T_co]: ...


@dataclass(frozen=True)
class Script:
    """One transition in Lua, with the shared part before it."""

    name: str

    @classmethod
    @cache
    def load(cls, name: str) -> "Script":
        return cls(name)

    @cached_property
    def text(self) -> str:
        folder = resources.files("tokenmill.wire") / "scripts"
        own = (folder / f"{self.name}.lua").read_text("utf-8")
        return _with_shared((folder / "lib.lua").read_text("utf-8"), own)

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


_DEFINED = re.compile(r"local (?:function )?(\w+(?:, \w+)*)")


def _with_shared(shared: str, own: str) -> str:
    """A script behind those of the shared definitions that it needs, directly or through others.

    Every call makes anew what stands there: all of it costs 5 us, and 25 when the server's caches have cooled down.
    A definition reaches to the next line that begins with `local`, and needs only what stands before it.
    """
    text = own
    for part in reversed(re.split(r"^(?=local )", shared, flags=re.MULTILINE)[1:]):
        names = _DEFINED.match(part)
        if names is not None and re.search(rf"\b(?:{names[1].replace(', ', '|')})\b", text):
            text = part + text
    return text


class Call(NamedTuple, Generic[T]):
    """One transition: a script, every key it may touch, its arguments, and how its reply reads."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument]
    parse: Callable[[Any], T]

    def steps(self) -> Steps[T]:
        results = yield from evaluate([self])
        return results[0]

    @property
    def by_sha(self) -> Command:
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.args)

    @property
    def by_text(self) -> Command:
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.args)


@dataclass(frozen=True, slots=True)
class Procedure(Generic[T]):
    """Several round trips: look candidates up with plain commands, then call scripts that check again."""

    start: Callable[[], Steps[T]]

    def steps(self) -> Steps[T]:
        return self.start()


def evaluate(calls: Sequence[Call[T]]) -> Steps[list[T]]:
    """All calls in one batch, in order; raises the first error among their replies."""
    return results_of((yield from attempt(calls)))


def results_of(outcomes: list[T | Exception]) -> list[T]:
    """Raises the first error among them."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes  # type: ignore[return-value]  # as just seen


def attempt(calls: Sequence[Call[T]]) -> Steps[list[T | Exception]]:
    """As `evaluate`, with an error as a value, so that it hides no other call's reply.

    Where the server has forgotten a script, that call and all after it are sent again with their text: transitions
    are idempotent, and the order of a job's publish and finish must hold.
    """
    replies = yield [call.by_sha for call in calls]
    if NoScriptError in map(type, replies):
        replies = yield from resend(calls, replies)
    return outcomes_of(calls, replies)


def resend(calls: Sequence[Call[T]], replies: list[Any]) -> Steps[list[Any]]:
    """From the first one on whose script was forgotten."""
    forgotten = next(i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError))
    again = yield [call.by_text for call in calls[forgotten:]]
    return replies[:forgotten] + again


def outcomes_of(calls: Sequence[Call[T]], replies: Sequence[Any]) -> list[T | Exception]:
    """What each reply says to its call: a result, or why there is none."""
    return list(map(_outcome, calls, replies))


def _outcome(call: Call[Any], reply: Any) -> Any:
    try:
        return call.parse(checked(reply) if isinstance(reply, Exception) else reply)
    except (TokenmillError, RedisError) as error:
        return error
    except (TypeError, ValueError) as error:  # a hash with fields that are not ours, or without some of ours
        return DecodeError(f"the reply to {call.script.name} is broken: {error}")


def checked(reply: Any) -> Any:
    """The reply itself, or the error of ours that an error reply means."""
    if not isinstance(reply, Exception):
        return reply
    raise translate(reply) from reply


def translate(error: Exception) -> Exception:
    """The error of ours for one of the server's; one that is a bug of ours stays as it is."""
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in str(error):
        return QueueBusyError("the server is at its memory limit; try again later", retry_after_s=1.0)
    if isinstance(error, MovedError):
        return UnavailableError(
            f"this node of a cluster does not serve the queue ({error}): a URL redis+cluster://host:port finds the "
            "one that does"
        )
    if is_passing(error):
        return UnavailableError(f"the server cannot answer now: {error}")
    if isinstance(error, ResponseError) and "FENCED" in str(error):
        return FencedError(str(error))
    if isinstance(error, RedisError):
        return error
    return UnavailableError(str(error))
