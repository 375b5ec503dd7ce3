"""The gateway under a long fuzz: every case that its document draws a line at, then many random ones, then chains."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenmill import Client

from tests.e2e.commands import started
from tests.gateway.fuzz import fuzz
from tests.gateway.running import running_gateway
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def url(redis_url: str, queue: str, tmp_path: Path) -> Iterator[str]:
    with (
        Client(redis_url, queue) as client,
        started("worker", "--model", "echo", "--redis", redis_url, "--queue", queue),
        started("bulk", "worker", "--redis", redis_url, "--files", tmp_path),
        running_gateway(redis_url=redis_url, queue=queue, files=tmp_path) as running,
    ):
        wait_until(lambda: client.statistics().workers, description="the worker is registered", timeout=30)
        yield running.url


@pytest.mark.timeout(1_200)
def test_thousands_of_odd_requests_get_no_server_error_and_no_hang(url: str) -> None:
    found = fuzz(url, phases="coverage,fuzzing,stateful", num_examples=100, timeout_s=1_100)
    print(found.stdout[-1_500:])
    assert found.returncode == 0, found.stdout[-20_000:] + found.stderr[-2_000:]
