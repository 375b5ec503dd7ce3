"""Fixtures of the acceptance scenarios: a queue on the session's server, and one on a server that may be harmed."""

from collections.abc import Iterator

import pytest
import redis
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect

from tests.queue.harness import Bench
from tests.support.servers import running_server


@pytest.fixture
def bench(redis_url: str, server: redis.Redis, keys: Keys) -> Bench:
    return Bench(redis_url, server, keys)


@pytest.fixture
def own() -> Iterator[Bench]:
    """On a server of the scenario's own."""
    with running_server() as server, connect(server.tcp_url) as client:
        yield Bench(server.tcp_url, client, Keys())
