"""Fixtures of the tests of what is told about a worker."""

import pytest
import redis
from tokenmill.wire.keys import Keys

from tests.queue.harness import Bench


@pytest.fixture
def bench(redis_url: str, server: redis.Redis, keys: Keys) -> Bench:
    return Bench(redis_url, server, keys)
