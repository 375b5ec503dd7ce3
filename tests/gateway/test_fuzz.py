"""No 5xx and no hang, whatever is asked: the short form; tests/acceptance/test_gateway_fuzz.py is the long one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.fuzz import fuzz
from tests.gateway.running import RunningGateway, running_gateway


@pytest.fixture
def gateway_with_all(redis_url: str, echo_queue: str, tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(redis_url=redis_url, queue=echo_queue, files=tmp_path) as running:
        yield running


def test_a_few_hundred_odd_requests_get_no_server_error(gateway_with_all: RunningGateway) -> None:
    found = fuzz(gateway_with_all.url, phases="fuzzing", num_examples=3, timeout_s=120)
    assert found.returncode == 0, found.stdout[-8_000:] + found.stderr[-2_000:]
