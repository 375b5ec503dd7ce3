"""Connections that find the master each time they connect. Knows no key, no script and no URL.

Everything above speaks to one plain client of one node. When that node says that it is not the master (any more), the
connection closes and reports a lost connection, which is what it is: whoever tries again is led to the new master.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.connection import Connection as AsyncConnection
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.connection import Connection, SSLConnection
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, ResponseError

from tokenmill.wire.store.faults import is_misdirected
from tokenmill.wire.store.routes import Address, Route

MAX_ASKED = 8  # nodes in one search: each may take a connect timeout, and the next search begins elsewhere


class _Search:
    """Whom to ask, beginning with another node each time: one that is cut off must not mislead us for ever."""

    def __init__(self, route: Route, options: Mapping[str, Any], *, shown: str) -> None:
        """`options`: of a connection to a node that is asked. `shown`: the URL as it may be shown."""
        self.shown = shown
        self._route = route
        self._options = options
        self._nodes = route.seeds
        self._num_searches = 0

    def _candidates(self) -> Iterator[Address]:
        nodes, first = self._nodes, self._num_searches
        self._num_searches += 1
        for number in range(min(len(nodes), MAX_ASKED)):
            yield nodes[(first + number) % len(nodes)]

    def _read(self, reply: Any, asked: Address) -> Address | None:
        master, peers = self._route.read(reply, asked)
        self._nodes = tuple(dict.fromkeys((*self._route.seeds, *peers)))
        return master

    def _failed(self, failures: list[str]) -> ConnectionError:
        return ConnectionError(f"no master found: {'; '.join(failures)}")


def _ask(node: Any, command: Sequence[str]) -> Any:
    return node.execute_command(*command)  # redis-py types it in one of its two clients only


class Search(_Search):
    def find(self) -> Address:
        failures: list[str] = []
        for asked in self._candidates():
            try:
                with redis.Redis.from_pool(redis.ConnectionPool(**self._options, **asked._asdict())) as node:
                    master = self._read(_ask(node, self._route.command), asked)
            except AuthenticationError:
                raise
            except (RedisError, OSError) as error:
                failures.append(f"{asked}: {error}")
            else:
                if master is not None:
                    return master
                failures.append(f"{asked} knows of none")
        raise self._failed(failures)


class AsyncSearch(_Search):
    async def find(self) -> Address:
        failures: list[str] = []
        for asked in self._candidates():
            try:
                pool = redis.asyncio.ConnectionPool(**self._options, **asked._asdict())
                async with redis.asyncio.Redis.from_pool(pool) as node:
                    master = self._read(await _ask(node, self._route.command), asked)
            except AuthenticationError:
                raise
            except (RedisError, OSError) as error:
                failures.append(f"{asked}: {error}")
            else:
                if master is not None:
                    return master
                failures.append(f"{asked} knows of none")
        raise self._failed(failures)


class RoutedConnection(Connection):
    """Its `host` and `port` are those of the last master found."""

    def __init__(self, *, search: Search, **options: Any) -> None:
        self._search = search
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py has no types here

    def _connect(self) -> Any:
        self.host, self.port = self._search.find()
        return super()._connect()  # type: ignore[no-untyped-call]  # as above

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)
        except ResponseError as error:
            if not is_misdirected(error):
                raise
            self.disconnect()  # type: ignore[no-untyped-call]  # as above
            raise _no_master(self.host, self.port, error) from error


class RoutedSSLConnection(RoutedConnection, SSLConnection):
    """With TLS."""


class AsyncRoutedConnection(AsyncConnection):
    """As RoutedConnection, for asyncio."""

    def __init__(self, *, search: AsyncSearch, **options: Any) -> None:
        self._search = search
        super().__init__(**options)

    async def _connect(self) -> None:
        self.host, self.port = await self._search.find()
        await super()._connect()  # type: ignore[no-untyped-call]  # as above

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if not is_misdirected(error):
                raise
            await self.disconnect()
            raise _no_master(self.host, self.port, error) from error


class AsyncRoutedSSLConnection(AsyncRoutedConnection, AsyncSSLConnection):
    """With TLS."""


def _no_master(host: str, port: int, error: Exception) -> ConnectionError:
    return ConnectionError(f"{Address(host, port)} is not the master now: {type(error).__name__} {error}")
