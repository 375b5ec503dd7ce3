"""Connections to the server: one place for URLs, timeouts and retries. Knows no key and no script."""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tokenmill.wire.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_URL = "redis://localhost:6379/0"

CONNECT_TIMEOUT_S = 2.0
REPLY_MARGIN_S = 5.0  # how long a reply may take, on top of the time that a command was asked to block
MAX_CONNECTIONS = 32  # of one client at once; each is held for one round trip
POOL_TIMEOUT_S = 60.0  # a wait for one of them that takes longer means that the server does not answer
RETRIES = 2  # a connection that the server or a proxy closed meanwhile; a wrong URL must not take long to say so

_SCHEMES = ("redis", "rediss", "unix")


def connect(
    url: str = DEFAULT_URL, *, block_s: float = 0.0, retries: int = RETRIES, max_connections: int = MAX_CONNECTIONS
) -> "redis.Redis":
    """A client for `redis://`, `rediss://` or `unix://`; nothing is sent yet.

    `block_s`: the longest time its commands block. `retries` 0 for who must notice every lost reply. Who wants a
    connection while `max_connections` are in use waits for one.
    """
    retry = Retry(ExponentialBackoff(cap=0.5, base=0.05), retries)
    pool = redis.BlockingConnectionPool.from_url(_checked(url), retry=retry, **_options(block_s, max_connections))
    return redis.Redis.from_pool(pool)


def connect_async(
    url: str = DEFAULT_URL, *, block_s: float = 0.0, retries: int = RETRIES, max_connections: int = MAX_CONNECTIONS
) -> "redis.asyncio.Redis":
    """As `connect`, for asyncio."""
    retry = AsyncRetry(ExponentialBackoff(cap=0.5, base=0.05), retries)
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        _checked(url), retry=retry, **_options(block_s, max_connections)
    )
    return redis.asyncio.Redis.from_pool(pool)


def hide_password(url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(url)
    if parts.password is None and "password=" not in parts.query:
        return url
    host = parts.netloc.rpartition("@")[2]
    netloc = f"{parts.username or ''}:***@{host}" if parts.password is not None else parts.netloc
    query = "&".join("password=***" if part.startswith("password=") else part for part in parts.query.split("&"))
    return urlunsplit((parts.scheme, netloc, parts.path, query, parts.fragment))


def url_of(client: "redis.Redis | redis.asyncio.Redis") -> str:
    """Where a client connects to, for messages; never a password."""
    options: Mapping[str, Any] = client.connection_pool.connection_kwargs
    if "path" in options:
        return f"unix://{options['path']}"
    scheme = "rediss" if client.connection_pool.connection_class.__name__.startswith("SSL") else "redis"
    return f"{scheme}://{options.get('host', 'localhost')}:{options.get('port', 6379)}/{options.get('db') or 0}"


def _checked(url: str) -> str:
    if urlsplit(url).scheme in _SCHEMES:
        return url
    shown = hide_password(url)
    raise InvalidRequestError(f"a server URL starts with redis://, rediss:// or unix://, got {shown!r}", param="url")


def _options(block_s: float, max_connections: int) -> dict[str, Any]:
    return {
        "protocol": 2,  # replies differ in shape between the protocol versions, so ours is fixed
        "socket_timeout": block_s + REPLY_MARGIN_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "max_connections": max_connections,
        "timeout": POOL_TIMEOUT_S,
    }
