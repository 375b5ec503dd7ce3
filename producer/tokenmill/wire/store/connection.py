"""Connections to the server: one place for URLs, timeouts and retries. Knows no key and no script."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.connection import SSLConnection as AsyncSSLConnection
from redis.asyncio.connection import parse_url as parse_async_url
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.connection import SSLConnection, parse_url
from redis.retry import Retry

from tokenmill.wire.store.routed import (
    AsyncRoutedConnection,
    AsyncRoutedSSLConnection,
    AsyncSearch,
    RoutedConnection,
    RoutedSSLConnection,
    Search,
)
from tokenmill.wire.store.routes import asking_url, hide_password, plain_url, route_of

DEFAULT_URL = "redis://localhost:6379/0"

CONNECT_TIMEOUT_S = 2.0
REPLY_MARGIN_S = 5.0  # how long a reply may take, on top of the time that a command was asked to block
MAX_CONNECTIONS = 32  # of one client at once; each is held for one round trip
POOL_TIMEOUT_S = 60.0  # a wait for one of them that takes longer means that the server does not answer
RETRIES = 2  # a connection that the server or a proxy closed meanwhile; a wrong URL must not take long to say so

_OF_THE_POOL = ("db", "host", "max_connections", "port", "timeout")  # options that are not a seed's


def connect(
    url: str = DEFAULT_URL,
    *,
    key: str = "",
    block_s: float = 0.0,
    retries: int = RETRIES,
    max_connections: int = MAX_CONNECTIONS,
) -> "redis.Redis":
    """A client of the one node that serves `key`; nothing is sent yet. routes.py lists the forms of a URL.

    `block_s`: the longest time its commands block. `retries` 0 for who must notice every lost reply. Who wants a
    connection while `max_connections` are in use waits for one.
    """
    options = _options(block_s, max_connections)
    if route := route_of(url, key):
        seed_options = _seed_options(parse_url(asking_url(url)))  # type: ignore[no-untyped-call]  # redis-py has no types here
        asking = {**seed_options, "retry": Retry(NoBackoff(), 0)}
        is_secure = asking.get("connection_class") is SSLConnection
        options["search"] = Search(route, asking, shown=_shown(url))
        options["connection_class"] = RoutedSSLConnection if is_secure else RoutedConnection
        url = plain_url(url)
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), retries)
    return redis.Redis.from_pool(redis.BlockingConnectionPool.from_url(url, retry=retry, **options))


def connect_async(
    url: str = DEFAULT_URL,
    *,
    key: str = "",
    block_s: float = 0.0,
    retries: int = RETRIES,
    max_connections: int = MAX_CONNECTIONS,
) -> "redis.asyncio.Redis":
    """As `connect`, for asyncio."""
    options = _options(block_s, max_connections)
    if route := route_of(url, key):
        asking = {**_seed_options(parse_async_url(asking_url(url))), "retry": AsyncRetry(NoBackoff(), 0)}
        is_secure = asking.get("connection_class") is AsyncSSLConnection
        options["search"] = AsyncSearch(route, asking, shown=_shown(url))
        options["connection_class"] = AsyncRoutedSSLConnection if is_secure else AsyncRoutedConnection
        url = plain_url(url)
    retry = AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), retries)
    return redis.asyncio.Redis.from_pool(redis.asyncio.BlockingConnectionPool.from_url(url, retry=retry, **options))


def url_of(client: "redis.Redis | redis.asyncio.Redis") -> str:
    """Where a client connects to, for messages; never a password."""
    options: Mapping[str, Any] = client.connection_pool.connection_kwargs
    if "search" in options:
        return str(options["search"].shown)
    if "path" in options:
        return f"unix://{options['path']}"
    scheme = "rediss" if client.connection_pool.connection_class.__name__.startswith("SSL") else "redis"
    return f"{scheme}://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db') or 0}"


def _shown(url: str) -> str:
    """Without user, password and options."""
    parts = urlsplit(hide_password(url))
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _seed_options(given: Mapping[str, Any]) -> dict[str, Any]:
    options = {name: value for name, value in given.items() if name not in _OF_THE_POOL}
    return {
        "protocol": 2,
        "socket_timeout": REPLY_MARGIN_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        **options,
    }


def _options(block_s: float, max_connections: int) -> dict[str, Any]:
    return {
        "protocol": 2,  # replies differ in shape between the protocol versions, so ours is fixed
        "socket_timeout": block_s + REPLY_MARGIN_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "max_connections": max_connections,
        "timeout": POOL_TIMEOUT_S,
    }
