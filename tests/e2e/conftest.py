"""A worker process with the echo model, on a queue of the test's own."""

import subprocess
from collections.abc import Iterator

import pytest
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store

from tests.e2e.commands import started
from tests.support.waiting import wait_until


@pytest.fixture
def worker(redis_url: str, queue: str, keys: Keys, store: Store) -> Iterator[subprocess.Popen[str]]:
    with started("worker", "--model", "echo", "--redis", redis_url, "--queue", queue) as process:
        wait_until(lambda: store.client.zcard(keys.workers), description="the worker is registered")
        yield process
