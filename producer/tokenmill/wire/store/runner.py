"""Carries operations to the server and back, blocking or awaiting. Knows no key, no script and no message."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from redis.exceptions import AuthenticationError, ConnectionError, NoScriptError, TimeoutError

from tokenmill.wire.errors import UnavailableError
from tokenmill.wire.store.calls import Call, Command, Operation, Steps, evaluate, outcomes_of, resend, results_of
from tokenmill.wire.store.connection import url_of
from tokenmill.wire.store.line import Answer, Line

if TYPE_CHECKING:
    import redis
    import redis.asyncio

T = TypeVar("T")

Fields = dict[bytes, bytes]


def _entries(reply: list[tuple[bytes, list[bytes] | None]] | None) -> list[tuple[bytes, Fields]]:
    """Stream entries as (id, fields); a deleted one, in a consumer's history, has none."""
    return [(entry_id, _pairs(flat or [])) for entry_id, flat in reply or []]


def _streams(reply: list[tuple[bytes, Any]] | None) -> list[tuple[bytes, list[tuple[bytes, Fields]]]]:
    return [(key, _entries(entries)) for key, entries in reply or []]


def _pairs(flat: list[bytes]) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True))


# redis-py gives replies shapes that change with its versions and options. Ours: as the server said it, but for these.
_SHAPES: dict[Any, Callable[[Any], Any]] = {
    "HGETALL": _pairs,
    "XRANGE": _entries,
    "XREVRANGE": _entries,
    "XREAD": _streams,
    "XREADGROUP": _streams,
}


def _shaped(command: Command, reply: Any) -> Any:
    shape = _SHAPES.get(command[0])
    return reply if shape is None or isinstance(reply, Exception) else shape(reply)


class Store:
    """Runs operations over a blocking client; as thread-safe as that client, which is: each call takes a connection."""

    def __init__(self, client: "redis.Redis") -> None:
        self.client = client
        self._line = Line(client)

    def run(self, operation: Operation[T]) -> T:
        """The operation's result. UnavailableError, FencedError or QueueBusyError say why there is none."""
        if isinstance(operation, Call):
            return cast("T", self.pipeline([operation])[0])
        return self._drive(operation.steps())

    def pipeline(self, calls: Sequence[Call[T]]) -> list[T]:
        """All calls in one round trip, in order."""
        return results_of(self.attempt(calls))

    def pipeline_each(self, batches: Sequence[Sequence[Call[T]]]) -> Iterator[list[T]]:
        """As `pipeline` for one batch after the other; the server gets the next one while it works on the last."""
        commands = ([call.by_sha for call in calls] for calls in batches)
        try:
            for calls, replies in zip(batches, self._line.ask_each(commands), strict=True):
                yield results_of(self._outcomes(calls, replies))
        except (ConnectionError, TimeoutError, OSError) as error:
            raise _unavailable(self.client, error) from error

    def attempt(self, calls: Sequence[Call[T]]) -> list[T | Exception]:
        """As `pipeline`, with an error as a value in place of a result. (As calls.attempt, in fewer layers.)"""
        if not calls:
            return []
        return self._outcomes(calls, self._ask([call.by_sha for call in calls]))

    def begin(self, calls: Sequence[Call[T]]) -> "Attempt[T]":
        """As `attempt`, sent and not waited for."""
        try:
            return Attempt(self, calls, self._line.begin([call.by_sha for call in calls]))
        except (ConnectionError, TimeoutError, OSError) as error:
            raise _unavailable(self.client, error) from error

    def end(self, calls: Sequence[Call[T]], answer: Answer) -> list[T | Exception]:
        """What `begin` began."""
        try:
            replies = answer.replies()
        except (ConnectionError, TimeoutError, OSError) as error:
            raise _unavailable(self.client, error) from error
        return self._outcomes(calls, replies)

    def _outcomes(self, calls: Sequence[Call[T]], replies: list[Any]) -> list[T | Exception]:
        if NoScriptError in map(type, replies):
            replies = self._drive(resend(calls, replies))
        return outcomes_of(calls, replies)

    def send(self, commands: Sequence[Command]) -> list[Any]:
        """One batch in one round trip; an error reply is a value among the replies."""
        return list(map(_shaped, commands, self._ask(commands)))

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        """The replies as the server said them."""
        try:
            return self._line.ask(commands)
        except (ConnectionError, TimeoutError, OSError) as error:
            raise _unavailable(self.client, error) from error

    def close(self) -> None:
        self._line.close()
        self.client.close()

    def _drive(self, steps: Steps[T]) -> T:
        try:
            commands = next(steps)
            while True:
                commands = steps.send(self.send(commands))
        except StopIteration as stop:
            result: T = stop.value
            return result


class Attempt(Generic[T]):
    """Calls that were sent: end it, or abandon it, whereupon nobody knows what the server did."""

    def __init__(self, store: Store, calls: Sequence[Call[T]], answer: Answer) -> None:
        self._store = store
        self._calls = calls
        self._answer = answer

    def outcomes(self) -> list[T | Exception]:
        return self._store.end(self._calls, self._answer)

    def abandon(self) -> None:
        self._answer.abandon()


class AsyncStore:
    """As Store, over an asyncio client."""

    def __init__(self, client: "redis.asyncio.Redis") -> None:
        self.client = client

    async def run(self, operation: Operation[T]) -> T:
        return await self._drive(operation.steps())

    async def pipeline(self, calls: Sequence[Call[T]]) -> list[T]:
        return await self._drive(evaluate(calls)) if calls else []

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        try:
            pipe: Any = self.client.pipeline(transaction=False)  # typed only in part
            pipe.response_callbacks = _SHAPES
            for command in commands:
                pipe.execute_command(*command)
            return list(await pipe.execute(raise_on_error=False))
        except (ConnectionError, TimeoutError, OSError) as error:
            raise _unavailable(self.client, error) from error

    async def close(self) -> None:
        await self.client.aclose()

    async def _drive(self, steps: Steps[T]) -> T:
        try:
            commands = next(steps)
            while True:
                commands = steps.send(await self.send(commands))
        except StopIteration as stop:
            result: T = stop.value
            return result


def _unavailable(client: "redis.Redis | redis.asyncio.Redis", error: Exception) -> UnavailableError:
    url, reason = url_of(client), str(error).rstrip(".")
    if isinstance(error, AuthenticationError):
        return UnavailableError(f"{url} refused the user or password: {reason}")
    return UnavailableError(
        f"no answer from {url}: {reason}. Is the server running, and is this its URL? `docker compose up` starts one; "
        f"set TOKENMILL_REDIS_URL or pass --redis for another"
    )
