"""Round trips over one connection kept at hand. Knows no command and no key.

redis-py's pool and pipeline cost more than the trip itself: a PING takes 160 us of processor time through both, 55 over
a connection that is simply there (redis-py 8.1, one Zen 5 core).
"""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import hiredis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

if TYPE_CHECKING:
    import redis

FRESH_S = 1.0  # a connection that lay idle for longer goes through the pool, which looks whether the server closed it


class Line:
    """As thread-safe as the pool: who finds no connection at hand takes one from there."""

    def __init__(self, client: "redis.Redis") -> None:
        self._pool = client.connection_pool
        self._at_hand: list[tuple[Any, float]] = []  # one at most, but for a race that costs nothing

    def ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The replies, as the server said them; error replies are values. ConnectionError, TimeoutError, OSError."""
        packed = _packed(commands)
        connection = self._take()
        try:
            try:
                replies = _exchange(connection, packed, len(commands))
            except Exception as error:
                replies = _again(connection, packed, len(commands), error)
        except BaseException:
            self.drop(connection)
            raise
        self.put_back(connection)
        return replies

    def ask_each(self, batches: Iterable[Sequence[tuple[Any, ...]]]) -> Iterator[list[Any]]:
        """As `ask` for one batch after the other. The next one is sent before the replies to the last are read, over
        the same connection, so that the server works while we pack and read. Unanswered ones are asked again, as there.
        """
        to_come = iter(batches)
        sent: deque[Sequence[tuple[Any, ...]]] = deque()
        connection = self._take()
        try:
            for commands in to_come:
                sent.append(commands)
                connection.send_packed_command(_packed(commands))
                if len(sent) == 2:
                    yield _read(connection, len(sent[0]))
                    sent.popleft()
            if sent:
                yield _read(connection, len(sent[0]))
                sent.popleft()
        except (ConnectionError, TimeoutError, OSError):
            self.drop(connection)
        except BaseException:
            self.drop(connection)
            raise
        else:
            self.put_back(connection)
        yield from map(self.ask, chain(sent, to_come))

    def begin(self, commands: Sequence[tuple[Any, ...]]) -> "Answer":
        """Sent, and not waited for; never tried again. Errors as with `ask`."""
        packed = _packed(commands)
        connection = self._take()
        answer = Answer(self, connection, len(commands))
        try:
            connection.send_packed_command(packed)
        except BaseException:
            answer.abandon()
            raise
        return answer

    def close(self) -> None:
        while self._at_hand:
            self._pool.release(self._at_hand.pop()[0])

    def _take(self) -> Any:
        try:
            connection, since_s = self._at_hand.pop()
        except IndexError:
            return self._pool.get_connection()
        if time.monotonic() - since_s < FRESH_S and connection.pid == os.getpid():  # not our parent's
            return connection
        self._pool.release(connection)
        return self._pool.get_connection()

    def drop(self, connection: Any) -> None:
        """Replies to come must not be taken for those to the next commands."""
        connection.disconnect()
        self._pool.release(connection)

    def put_back(self, connection: Any) -> None:
        if self._at_hand or connection.should_reconnect():
            self._pool.release(connection)
        else:
            self._at_hand.append((connection, time.monotonic()))


class Answer:
    """The replies to commands that were sent: to be read, or abandoned."""

    def __init__(self, line: Line, connection: Any, num_replies: int) -> None:
        self._line = line
        self._connection = connection
        self._num_replies = num_replies

    def replies(self) -> list[Any]:
        """As `Line.ask` gives them."""
        try:
            replies = _read(self._connection, self._num_replies)
        except BaseException:
            self.abandon()
            raise
        self._line.put_back(self._connection)
        return replies

    def abandon(self) -> None:
        self._line.drop(self._connection)


def _packed(commands: Sequence[tuple[Any, ...]]) -> list[bytes]:
    """As redis-py has it, which looks at every argument first."""
    return [b"".join(map(hiredis.pack_command, commands))]


def _exchange(connection: Any, packed: list[bytes], num_replies: int) -> list[Any]:
    connection.send_packed_command(packed)
    return _read(connection, num_replies)


def _read(connection: Any, num_replies: int) -> list[Any]:
    replies: list[Any] = []
    while len(replies) < num_replies:
        try:
            replies.append(connection.read_response())
        except ResponseError as error:
            replies.append(error)
    return replies


def _again(connection: Any, packed: list[bytes], num_replies: int, error: Exception) -> list[Any]:
    """As often as the connection's own retry says, which counts the attempt that failed with `error`; or raises."""
    failed = [error]

    def exchange() -> list[Any]:
        if failed:
            raise failed.pop()
        return _exchange(connection, packed, num_replies)

    replies: list[Any] = connection.retry.call_with_retry(exchange, lambda error: connection.disconnect())
    return replies
