"""The real application under uvicorn on loopback, in front of a real server and a worker of the echo model."""

from collections.abc import Iterator
from contextlib import closing

import httpx2 as httpx
import pytest
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Store, connect

from tests.e2e.commands import started
from tests.gateway.running import RunningGateway, running_gateway
from tests.support.waiting import wait_until

QUEUE = "gateway"  # of these tests alone, on the server that all tests share


@pytest.fixture(scope="session")
def echo_queue(redis_url: str) -> Iterator[str]:
    """A queue that a worker of the echo model answers."""
    keys = Keys(QUEUE)
    with (
        closing(Store(connect(redis_url))) as store,
        started("worker", "--model", "echo", "--redis", redis_url, "--queue", QUEUE),
    ):
        wait_until(lambda: store.client.zcard(keys.workers), description="the worker is registered", timeout=30)
        yield QUEUE


@pytest.fixture(scope="session")
def gateway(redis_url: str, echo_queue: str) -> Iterator[RunningGateway]:
    """One gateway for all tests that only ask."""
    with running_gateway(redis_url=redis_url, queue=echo_queue) as running:
        yield running


@pytest.fixture
def idle_gateway(redis_url: str, queue: str) -> Iterator[RunningGateway]:
    """A gateway in front of a queue of the test's own, which nobody serves but the test's own `hands`."""
    with running_gateway(redis_url=redis_url, queue=queue) as running:
        yield running


@pytest.fixture
def http(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client
