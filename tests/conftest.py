"""Fixtures that every test may use: a real server for the session, a queue of its own for each test."""

import itertools
import os
from collections.abc import Iterator

import pytest
import redis
from tokenmill import Client
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, Transitions, connect

from tests.support.hands import Hands
from tests.support.servers import running_server

# Triton's kernels run on the CPU here. It looks when it is first imported, which parts of torch do by themselves.
os.environ.setdefault("TRITON_INTERPRET", "1")

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A real Valkey, started once; or the server of TOKENMILL_TEST_REDIS_URL, to try another version."""
    if url := os.environ.get("TOKENMILL_TEST_REDIS_URL"):
        yield url
        return
    with running_server() as server:
        yield server.tcp_url


@pytest.fixture
def queue() -> str:
    """A queue name that no other test uses: tests share one server and never see each other."""
    return f"test-{next(_numbers)}"


@pytest.fixture
def keys(queue: str) -> Keys:
    return Keys(queue)


@pytest.fixture
def transitions(keys: Keys) -> Transitions:
    return Transitions(keys)


@pytest.fixture
def server(redis_url: str) -> Iterator[redis.Redis]:
    """A bare client: what a producer in any other language has."""
    client = connect(redis_url)
    yield client
    client.close()


@pytest.fixture
def store(server: redis.Redis) -> Store:
    return Store(server)


@pytest.fixture
def hands(store: Store, keys: Keys) -> Hands:
    """A registered worker that does what the test tells it."""
    return Hands(store, keys)


@pytest.fixture
def client(redis_url: str, queue: str) -> Iterator[Client]:
    with Client(redis_url, queue=queue) as client:
        yield client
