"""The server loses all its data under load: whoever waits is told so, workers begin anew, and new work is done."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tokenmill import Client, Completion, JobLostError, follow
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect

from tests.acceptance.fleet import Load, running_fleet
from tests.queue.harness import Bench
from tests.support.servers import ForgetfulServer
from tests.support.waiting import wait_until


@pytest.fixture
def server() -> Iterator[ForgetfulServer]:
    forgetful = ForgetfulServer()
    yield forgetful
    forgetful.kill()


def flush(server: ForgetfulServer) -> None:
    with connect(server.url) as client:
        client.flushall()


def restart(server: ForgetfulServer) -> None:
    server.kill()
    server.start()


@pytest.mark.parametrize("lose_data", [flush, restart])
def test_lost_requests_are_told_as_lost_and_new_ones_are_served(
    server: ForgetfulServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lose_data: Callable[[ForgetfulServer], None],
) -> None:
    monkeypatch.setattr(follow, "BLOCK_S", 1.0)  # after so long a wait the reader looks whether there is a job at all
    running, waiting, after = (
        Load.echo(8, max_tokens=num, name=name) for num, name in ((400, "r"), (8, "w"), (8, "a"))
    )
    with connect(server.url) as bare, running_fleet(bench := Bench(server.url, bare, Keys()), tmp_path) as fleet:
        (worker,) = fleet.start_ready()
        running.submit(bench)
        running.wait_published(bench, 8)
        waiting.submit(bench)
        with _readers(server.url, running.requests | waiting.requests) as readers:
            lose_data(server)
            for reader in readers:
                assert "the server lost data" in str(reader.exception(timeout=30.0))
                assert isinstance(reader.exception(), JobLostError)
        wait_until(bench.workers, description="the worker is registered anew")
        after.submit(bench)
        after.wait_final(bench)
        after.assert_answered(bench)
        assert worker.is_alive()
        assert worker.log.count("lost its lease") == 1
        assert "requests dropped" in worker.log
        assert worker.terminate() == 0
        assert bench.is_at_rest()
        assert not set(bare.scan_iter("*:j:r-*"))


@contextlib.contextmanager
def _readers(url: str, requests: dict[str, dict[str, Any]]) -> Iterator[list["Future[Completion]"]]:
    """One thread for each, which submitted it and waits for the result."""
    with Client(url) as client, ThreadPoolExecutor(len(requests)) as pool:
        jobs = client.submit_many([{"id": name, **fields} for name, fields in requests.items()])
        yield [pool.submit(job.result, 60.0) for job in jobs]
