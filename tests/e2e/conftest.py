"""A worker process with the echo model: on a queue of the test's own, or one for all tests."""

import subprocess
from collections.abc import Iterator
from contextlib import closing

import pytest
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, connect

from tests.e2e.commands import started
from tests.support.waiting import wait_until


@pytest.fixture
def worker(redis_url: str, queue: str, keys: Keys, store: Store) -> Iterator[subprocess.Popen[str]]:
    with started("worker", "--model", "echo", "--redis", redis_url, "--queue", queue) as process:
        wait_until(lambda: store.client.zcard(keys.workers), description="the worker is registered")
        yield process


@pytest.fixture(scope="session")
def served(redis_url: str) -> Iterator[tuple[str, ...]]:
    """The options that lead to one worker for all tests that only need somebody to answer."""
    keys = Keys("served")
    with (
        closing(Store(connect(redis_url))) as store,
        started("worker", "--model", "echo", "--redis", redis_url, "--queue", keys.queue),
    ):
        wait_until(lambda: store.client.zcard(keys.workers), description="the worker is registered")
        yield ("--redis", redis_url, "--queue", keys.queue)
